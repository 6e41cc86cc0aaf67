FROM python:3.12-slim

ENV PYTHONUNBUFFERED=1 \
    PYTHONPATH=/opt/biospex \
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

USER 1000

# On a work pool the worker gives its own command; alone, the container serves both deployments.
CMD ["python", "-m", "flows.serve"]
