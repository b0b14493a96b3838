# The gateway's image: FastAPI and the queue's client. No torch: the last check of the build proves it.
# BASE needs Python 3.11 or newer with venv, and useradd.
ARG BASE=python:3.12-slim

FROM ${BASE} AS build
WORKDIR /src
RUN python3 -m venv /opt/reverie
COPY pyproject.toml constraints.txt docker/requirements.py ./
RUN /opt/reverie/bin/python requirements.py service > requirements.txt \
    && /opt/reverie/bin/pip install --no-cache-dir --constraint constraints.txt --requirement requirements.txt
COPY README.md LICENSE ./
COPY service service
COPY worker worker
COPY training training
# The bundled weights are the worker's.
RUN find worker/bundled -name '*.safetensors' -delete \
    && /opt/reverie/bin/pip install --no-cache-dir --no-deps .
RUN /opt/reverie/bin/python -c "import importlib.util as u, sys; sys.exit(u.find_spec('torch') and 'torch is in the gateway image')"

FROM ${BASE}
RUN useradd --system --uid 10001 --create-home reverie \
    && mkdir -p /var/lib/reverie/keys && chown -R 10001 /var/lib/reverie && chmod 700 /var/lib/reverie/keys
COPY --from=build /opt/reverie /opt/reverie
ENV PATH=/opt/reverie/bin:$PATH PYTHONUNBUFFERED=1 REVERIE_HOST=0.0.0.0 REVERIE_PORT=8000
USER 10001
WORKDIR /home/reverie
EXPOSE 8000
HEALTHCHECK --interval=5s --timeout=5s --start-period=120s --retries=3 \
    CMD ["python", "-c", "import os, urllib.request as r; r.urlopen('http://127.0.0.1:' + os.environ['REVERIE_PORT'] + '/readyz', timeout=4)"]
CMD ["python", "-m", "service"]
