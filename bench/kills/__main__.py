"""``python -m bench.kills``: see the package."""

import argparse
import os
import platform
import random
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from tempfile import TemporaryDirectory

import boto3

import bench.kills
from bench.export import MEAN_IMAGE, make_export
from bench.kills.aws import Aws
from bench.kills.counting import IMAGES, Round, line, table
from bench.kills.rounds import Place
from bench.kills.victims import VICTIMS, PostgreSQL, PrefectServer, Proxy
from devtools.database import postgresql
from devtools.object_store import seaweedfs
from devtools.proxy import NGINX
from devtools.services import REGION, embedded_aws
from splitter.aws.s3 import CLIENT_CONFIG

EARLIEST = 0.5
"""Seconds; a kill that comes too late even then is not tried again."""


def make_exports(directory: Path) -> list[Path]:
    """A ZIP and a tar.gz of the same members."""
    directory.mkdir()
    exports = [directory / "41-spliced.zip", directory / "43-extracted.tar.gz"]
    for path in exports:
        make_export(path, IMAGES, order="merged")
    return exports


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.kills",
        description=bench.kills.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--rounds", type=int, default=54)
    parser.add_argument("--seed", type=int, default=1, help="of the moments of the kills")
    parser.add_argument("--only", type=int, nargs="+", metavar="ROUND", help="play these alone")
    parser.add_argument("--places", type=int, default=3, help="rounds at a time")
    parser.add_argument("--outage", type=float, default=180, help="seconds without Prefect (180)")
    parser.add_argument(
        "--pause", type=float, default=30, help="seconds without the proxy or PostgreSQL (30)"
    )
    parser.add_argument("--directory", type=Path, help="where the logs are kept; must not exist")
    options = parser.parse_args()
    if NGINX is None:
        sys.exit("nginx is not installed.")
    numbers = options.only or list(range(1, options.rounds + 1))
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(TemporaryDirectory(prefix="bench-kills-")))
        logs = options.directory or scratch / "logs"
        exports = make_exports(scratch / "exports")
        aws = stack.enter_context(embedded_aws())
        endpoint = stack.enter_context(seaweedfs(scratch / "store"))
        keys = (aws["AWS_ACCESS_KEY_ID"], aws["AWS_SECRET_ACCESS_KEY"])
        session = boto3.Session(*keys, region_name=REGION)
        s3 = session.client("s3", endpoint_url=endpoint, config=CLIENT_CONFIG)
        sqs = session.client("sqs", endpoint_url=aws["AWS_ENDPOINT_URL"])
        make_aws = partial(Aws, s3, sqs, exports)

        def open_place(number: int) -> Place:
            home = scratch / f"prefect-{number}"
            home.mkdir()
            database = stack.enter_context(postgresql())
            server = PrefectServer(home, database.url)
            stack.callback(server.stop)
            server.start()
            proxy = Proxy(server.environment["PREFECT_API_URL"], home)
            stack.callback(proxy.stop)
            proxy.start()
            return Place(
                {**aws, "AWS_ENDPOINT_URL_S3": endpoint, **server.environment},
                proxy.url,
                {
                    "prefect": (server, options.outage),
                    "proxy": (proxy, options.pause),
                    "postgresql": (PostgreSQL(database), options.pause),
                },
                make_aws,
                exports,
                logs / f"place-{number}",
            )

        places: SimpleQueue[Place] = SimpleQueue()
        for number in range(min(options.places, len(numbers))):
            places.put(open_place(number))
        pool = ThreadPoolExecutor(places.qsize())
        stack.callback(pool.shutdown, cancel_futures=True)

        def rehearse(_: int) -> Place:
            place = places.get()
            place.rehearse()
            return place

        rehearsed = list(pool.map(rehearse, range(places.qsize())))
        for place in rehearsed:
            places.put(place)
        # The shortest, so that few kills come too late.
        spans = {name: min(place.spans[name] for place in rehearsed) for name in VICTIMS}
        print(
            f"{len(exports)} exports of {IMAGES * MEAN_IMAGE / 1e6:.0f} MB, {len(place.expected)} "
            f"batches; seed {options.seed}; {places.qsize()} rounds at a time; {os.cpu_count()} "
            f"cores, {platform.machine()}, {time.strftime('%Y-%m-%d')}\nUndisturbed, seconds: "
            + ", ".join(f"{victim} {seconds:.1f}" for victim, seconds in spans.items()),
            flush=True,
        )

        def play(number: int) -> Round:
            victim = VICTIMS[(number - 1) % len(VICTIMS)]
            place = places.get()
            moment = random.Random(f"{options.seed} {number}").random() * spans[victim]
            this = place.play(Round(number, victim, moment))
            while this.hit is None and not this.broken and moment > EARLIEST:
                moment /= 2  # all was over: the same kill, earlier
                this = place.play(Round(number, victim, moment))
            places.put(place)
            print(line(this), flush=True)
            return this

        rounds = list(pool.map(play, numbers))
    print("", *table(rounds), sep="\n")
    broken = [this for this in rounds if this.broken]
    for this in broken:
        print(f"To repeat: python -m bench.kills --seed {options.seed} --only {this.number}")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
