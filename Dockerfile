# The worker, with every task plugin of this repository.
#
#   docker build --tag remora .
#   docker run --detach --name remora --hostname remora --publish 127.0.0.1:50051:50051 --stop-timeout 30 \
#     --volume remora:/var/lib/remora --volume "$PWD/config:/srv/remora/config:ro" remora
#
# Without a config directory, settings come from REMORA_* variables and credentials from AWS's default chain.

FROM python:3.13-slim-bookworm AS build

WORKDIR /build
COPY requirements/build.txt requirements/runtime.txt requirements/
RUN python -m pip install --no-cache-dir --root-user-action ignore --require-hashes -r requirements/build.txt \
    && python -m venv --without-pip /opt/remora \
    && uv pip install --no-cache --python /opt/remora/bin/python --compile-bytecode --only-binary :all: \
        --require-hashes -r requirements/runtime.txt

# The distributions change oftener than what they need: a layer of their own.
COPY LICENSE LICENSE
COPY worker worker
COPY plugins plugins
RUN for distribution in worker plugins/*; do \
        (cd "$distribution" && python -m hatchling build --target wheel --directory /build/wheels) || exit 1; \
    done \
    && uv pip install --no-cache --python /opt/remora/bin/python --compile-bytecode --no-deps wheels/*.whl


FROM python:3.13-slim-bookworm

RUN useradd --system --uid 10001 --home-dir /srv/remora --create-home --shell /usr/sbin/nologin remora \
    && install --directory --owner remora --group remora --mode 0750 /var/lib/remora
COPY --from=build /opt/remora /opt/remora

# Inside a container, loopback reaches nobody: --publish decides who may connect. Everything that has to outlive the
# container, journal and task logs, is on the volume.
ENV PATH=/opt/remora/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    REMORA_DOOR_GRPC_ADDRESS=0.0.0.0:50051 \
    REMORA_WORKER_DATA_DIR=/var/lib/remora

USER remora
WORKDIR /srv/remora
VOLUME /var/lib/remora
EXPOSE 50051
# Needs no token. Where the door speaks TLS, pass --health-cmd 'remora health --tls-ca ...'.
HEALTHCHECK --interval=15s --timeout=5s --start-period=10s CMD ["remora", "health"]
ENTRYPOINT ["remora"]
CMD ["worker"]
