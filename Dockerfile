# To start each build from the same bytes, give the digest of the base image:
#   docker build --build-arg BASE=python:3.12-slim@sha256:... .
# `docker buildx imagetools inspect python:3.12-slim` prints it. A digest gets no fixes until somebody
# changes it, so none is set here.
ARG BASE=python:3.12-slim
FROM ${BASE}

# With a fixed threshold, glibc returns the memory of each upload's parts to the system. By default it
# soon raises the threshold and keeps that memory for each thread: up to 80 MiB for 32,000 images. It
# then sets the trim threshold to twice the other, so do that too: otherwise it returns the memory of
# each image, and the system has to clear it again for the next.
ENV PYTHONUNBUFFERED=1 \
    PYTHONPATH=/opt/biospex \
    MALLOC_MMAP_THRESHOLD_=1048576 \
    MALLOC_TRIM_THRESHOLD_=2097152 \
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
# The user of the container may not write here, so each run would compile the code again.
RUN python -m compileall -q blocks flows splitter cli

USER 1000

# A worker sets its own command; without one the container serves both deployments.
CMD ["python", "-m", "flows.serve"]
