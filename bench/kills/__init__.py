"""Kills processes during exports and checks the guarantees.

``python -m bench.kills --rounds 54``. Each round puts a ZIP, which is spliced, and a tar.gz, which
is extracted, into a bucket of its own, starts ``flows.serve`` and kills (SIGKILL) its victim at a
random moment; if all was over by then, it is played again with half the time:

flow        the process of one export
sender      the process of an export that has just sent its callback, at once or a little later
listener    the process of ``listen``
both        those two at once
service     the process of ``flows.serve`` alone; its children live on, and it is started again
container   every process of ``flows.serve``, which is started again
prefect     the Prefect server, which is started again after ``--outage`` seconds
proxy       nginx, as the docs set it up, between ``flows.serve`` and the Prefect server; it is
            started again after ``--pause`` seconds
worker      the worker of a work pool that runs the exports, soon after it has taken one; it is
            started again. ``listen`` is a process of its own, in place of ``flows.serve``
postgresql  Prefect's database, which is started again on its data after ``--pause`` seconds

No export may need a second attempt because prefect, proxy or postgresql was away.

When the trigger queue is empty and every run has ended, the round counts callbacks, compares each
object with that of an undisturbed run, and looks for what is left. SQS is moto's, S3 is
SeaweedFS, Prefect's database is PostgreSQL. A service serves every run that its Prefect API has, so
rounds that go on at the same time have a Prefect server each. The exit status is 1 if a round broke
the promise.
"""
