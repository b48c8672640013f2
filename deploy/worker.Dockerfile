# A worker: git, Python and what the flows import. Each run makes, or finds, the environment of its own
# requirements.lock in LOCKSTEP_HOME, so that this image needs neither torch nor the project.
#
#   docker build -f deploy/worker.Dockerfile -t lockstep-worker .
FROM python:3.11-slim

RUN apt-get update \
    && apt-get install --yes --no-install-recommends git openssh-client \
    && rm -rf /var/lib/apt/lists/*

COPY requirements.lock /tmp/
RUN pip install --no-cache-dir --constraint /tmp/requirements.lock prefect fastapi sqlalchemy cyclopts pydantic ruamel.yaml

RUN useradd --create-home worker && install --directory --owner worker /var/lib/lockstep
USER worker
ENV LOCKSTEP_HOME=/var/lib/lockstep
VOLUME /var/lib/lockstep
WORKDIR /home/worker
CMD ["prefect", "worker", "start", "--pool", "team"]
