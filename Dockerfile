# One image for the API and the workers; compose.yaml says which it is. Packages by hash: requirements.txt, made by `make lock`.
FROM python:3.13-slim AS build
COPY requirements.txt /build/
RUN python -m venv /app && /app/bin/pip install --no-cache-dir --no-deps --require-hashes --only-binary :all: -r /build/requirements.txt
COPY pyproject.toml README.md LICENSE /build/
COPY api /build/api
COPY worker /build/worker
COPY shared /build/shared
RUN /app/bin/pip install --no-cache-dir --no-deps /build

FROM python:3.13-slim
RUN useradd --system --uid 10001 --home-dir /nonexistent --shell /usr/sbin/nologin millstream \
 && install -d -o millstream -g millstream /data
COPY --from=build /app /app
ENV PATH=/app/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 MILLSTREAM_DATA_DIR=/data
USER millstream
WORKDIR /tmp
VOLUME /data
EXPOSE 8000
STOPSIGNAL SIGTERM
ENTRYPOINT ["millstream"]
CMD ["api", "--host", "0.0.0.0", "--port", "8000"]
