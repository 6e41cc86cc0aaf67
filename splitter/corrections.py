"""A trigger whose fields a person filled in: what is meant where only one thing can be."""

import re
from typing import Any
from urllib.parse import unquote, urlsplit

BUCKET_ARN = re.compile(r"arn:aws[a-z\-]*:s3:::([a-z0-9.\-]+)")
"""https://docs.aws.amazon.com/AmazonS3/latest/userguide/s3-arn-format.html"""

VIRTUAL_HOST = re.compile(r"(?P<bucket>[a-z0-9.\-]+)\.s3[.\-][a-z0-9.\-]*amazonaws\.com(?:\.cn)?")
PATH_STYLE_HOST = re.compile(r"s3[.\-][a-z0-9.\-]*amazonaws\.com(?:\.cn)?|s3\.amazonaws\.com")
"""https://docs.aws.amazon.com/AmazonS3/latest/userguide/VirtualHosting.html"""


def corrected(message: Any) -> tuple[Any, list[str]]:
    """The message as it was meant, and a sentence on each field that was read otherwise.

    A field that can be read in two ways is left as it is, for the check to refuse or for S3 to say
    that there is no such archive. Only the wire's names are looked for, as BIOSPEX and forms have
    them.
    """
    if not isinstance(message, dict):
        return message, []
    fields, said = dict(message), []

    def take(field: str, value: str, why: str) -> None:
        said.append(f"'{field}' is {why}; '{value[:200]}' was taken.")
        fields[field] = value

    bucket = fields.get("s3Bucket")
    if isinstance(bucket, str):
        found = BUCKET_ARN.fullmatch(bucket.strip(" "))
        if found:
            bucket = found[1]
            take("s3Bucket", bucket, "an ARN instead of a bucket's name")
        elif bucket.strip(" ") != bucket:
            bucket = bucket.strip(" ")
            take("s3Bucket", bucket, "a name with blanks around it")
    queue = fields.get("updatesQueueUrl")
    if isinstance(queue, str) and queue.strip(" ") != queue:
        take("updatesQueueUrl", queue.strip(" "), "a URL with blanks around it")
    path = fields.get("exportPath")
    if isinstance(path, str) and isinstance(bucket, str) and bucket:
        key, why = _key(path, bucket, fields.get("file"))
        if key != path:
            take("exportPath", key, why)
    return fields, said


def _key(path: str, bucket: str, file: object) -> tuple[str, str]:
    """The key that a path means, and what the path is instead of one."""
    if "://" in path:
        try:
            address = urlsplit(path)
        except ValueError:
            return path, ""
        host, inside = address.netloc, unquote(address.path).lstrip("/")
        if address.scheme == "s3":
            key = path.removeprefix(f"s3://{bucket}/")
            return key, "an s3:// address instead of a key"
        virtual = VIRTUAL_HOST.fullmatch(host)
        if virtual and virtual["bucket"] == bucket:
            return inside or path, "a URL instead of a key"
        if PATH_STYLE_HOST.fullmatch(host) and inside.startswith(f"{bucket}/"):
            return inside.removeprefix(f"{bucket}/"), "a URL instead of a key"
        return path, ""
    key, why = path, []
    if isinstance(file, str) and file and not _ends_in(key, file) and _ends_in(unquote(key), file):
        key = unquote(key)
        why.append("URL-encoded")
    if key.startswith("/") and key.strip("/"):
        key = key.lstrip("/")
        why.append("written with a leading slash")
    inside = key.removeprefix(f"{bucket}/")
    if inside != key and "/" in inside.strip("/"):  # else the folder may have the bucket's name
        key = inside
        why.append("written with the bucket in front")
    return key, " and ".join(why)


def _ends_in(key: str, file: str) -> bool:
    return key == file or key.endswith(f"/{file}")
