# The worker's image: torch, diffusers and the bundled models.
# BASE needs Python 3.11 or newer with venv, and useradd.
ARG BASE=python:3.12-slim

FROM ${BASE} AS build
# Which build of torch: options for pip, `--index-url` of the build and `--extra-index-url` of everything else. As it is,
# the default of pip.
ARG TORCH_PIP_OPTIONS=""
WORKDIR /src
RUN python3 -m venv /opt/reverie
# torch goes first and alone: its layer is the large one and stays when the code changes.
COPY constraints.txt ./
RUN /opt/reverie/bin/pip install --no-cache-dir --constraint constraints.txt ${TORCH_PIP_OPTIONS} torch
COPY pyproject.toml docker/requirements.py ./
RUN /opt/reverie/bin/python requirements.py worker > requirements.txt \
    && /opt/reverie/bin/pip install --no-cache-dir --constraint constraints.txt --requirement requirements.txt
COPY README.md LICENSE ./
COPY service service
COPY worker worker
COPY training training
RUN /opt/reverie/bin/pip install --no-cache-dir --no-deps .
# A new named volume begins as a copy of what the image holds at its place: the store starts with the bundled models.
RUN cp -r "$(/opt/reverie/bin/python -c 'from worker.store.bundled import bundled_store_path as path; print(path())')" /store

FROM ${BASE}
# Debian packages. For a GPU a C compiler: Triton builds a stub with it that launches its kernels; without one a step's
# arithmetic runs as torch's operations, with the same pixels.
ARG SYSTEM_PACKAGES=""
RUN if [ -n "${SYSTEM_PACKAGES}" ]; then \
      apt-get update && apt-get install --yes --no-install-recommends ${SYSTEM_PACKAGES} && rm -rf /var/lib/apt/lists/*; fi
RUN useradd --system --uid 10001 --create-home reverie
COPY --from=build /opt/reverie /opt/reverie
COPY --from=build --chown=10001 /store /var/lib/reverie/store
COPY docker/worker_health.py /opt/reverie/worker_health.py
# The default model is the one that the bundled models have where nobody names a store; others may be published beside it.
ENV PATH=/opt/reverie/bin:$PATH PYTHONUNBUFFERED=1 REVERIE_STORE=/var/lib/reverie/store REVERIE_DEFAULT_MODEL=emoji
USER 10001
WORKDIR /home/reverie
VOLUME /var/lib/reverie/store
HEALTHCHECK --interval=10s --timeout=8s --start-period=120s --retries=3 CMD ["python", "/opt/reverie/worker_health.py"]
CMD ["python", "-m", "worker"]
