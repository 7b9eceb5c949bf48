# sidstream: one image for every process; the command names which. `docker build -t sidstream:local .`

FROM python:3.11-slim-bookworm AS build
RUN pip install --no-cache-dir uv==0.13.8
ENV UV_LINK_MODE=copy UV_COMPILE_BYTECODE=1 VIRTUAL_ENV=/opt/sidstream
RUN uv venv "$VIRTUAL_ENV"
# Before the sources, so that this large layer is built again only when a pin changes.
COPY requirements/image.txt requirements/image.txt
RUN --mount=type=cache,target=/root/.cache/uv uv pip install --require-hashes -r requirements/image.txt
COPY . /src
# Without isolation: the build backend is the pinned setuptools of the environment.
RUN uv pip install --no-deps --no-build-isolation /src

FROM python:3.11-slim-bookworm
RUN useradd --system --uid 10001 --user-group --home-dir /var/lib/sidstream --create-home sidstream \
    # A named volume takes the owner of the directory that it is mounted over.
    && install --directory --owner=sidstream --group=sidstream /var/lib/sidstream/index
COPY --from=build /opt/sidstream /opt/sidstream
ENV PATH=/opt/sidstream/bin:$PATH PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1
USER sidstream
WORKDIR /var/lib/sidstream
EXPOSE 9464
ENTRYPOINT ["sidstream"]
CMD ["--help"]
