# An operator who wants each build to begin with the same bytes gives the image by its digest:
#   docker build --build-arg BASE=python:3.12-slim@sha256:... .
# `docker buildx imagetools inspect python:3.12-slim` prints it. None is written here, since it could
# not be looked up where this was written; a digest also gets no fixes until somebody changes it.
ARG BASE=python:3.12-slim
FROM ${BASE}

# What glibc maps for one allocation goes back to the system when it is given back; by itself it soon
# keeps the parts of uploads for each thread: up to 80 MiB for 32,000 images.
ENV PYTHONUNBUFFERED=1 \
    PYTHONPATH=/opt/biospex \
    MALLOC_MMAP_THRESHOLD_=1048576 \
    DO_NOT_TRACK=1 \
    PREFECT_FLOWS_HEARTBEAT_FREQUENCY=30

RUN useradd --create-home --uid 1000 biospex

WORKDIR /opt/biospex

COPY requirements.lock .
RUN pip install --no-cache-dir --disable-pip-version-check --no-deps --require-hashes \
    -r requirements.lock

COPY prefect.yaml ./
COPY blocks blocks
COPY flows flows
COPY splitter splitter
COPY cli cli
# Nobody may write there later on, and each run would compile them anew.
RUN python -m compileall -q blocks flows splitter cli

USER 1000

# On a work pool the worker gives its own command; alone, the container serves both deployments.
CMD ["python", "-m", "flows.serve"]
