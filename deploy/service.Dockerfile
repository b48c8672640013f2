# The model service, without torch: about 250 MB. It serves the published model, or one that is mounted:
#
#   docker build -f deploy/service.Dockerfile -t lockstep-service .
#   docker run -p 8000:8000 lockstep-service
#   docker run -p 8000:8000 -v "$PWD/data/model:/model:ro" lockstep-service --model /model/model.onnx
FROM python:3.11-slim

WORKDIR /src
COPY pyproject.toml README.md LICENSE MANIFEST.in requirements.lock ./
COPY lockstep lockstep
RUN pip install --no-cache-dir --constraint requirements.lock ".[service]" && rm -rf /src/*

RUN useradd --create-home service
USER service
WORKDIR /home/service
EXPOSE 8000
HEALTHCHECK CMD ["python", "-c", "from urllib.request import urlopen; urlopen('http://127.0.0.1:8000/readyz')"]
ENTRYPOINT ["lockstep", "serve", "--host", "0.0.0.0"]
