# slicemill with all its stages:
#
#   docker build -t slicemill .                              on CPUs
#   docker build -t slicemill-gpu --build-arg RUNTIME=gpu .  on NVIDIA GPUs
#   docker run --rm -v "$PWD:/data" slicemill demo
#   docker run --rm --gpus all -v "$PWD:/data" slicemill-gpu infer model.onnx scans/ --out masks/
#
# By default pip installs torch with CUDA, several GB, also for CPUs. With the address of PyTorch's packages for CPUs in
# --build-arg PIP_EXTRA_INDEX_URL=... the image for CPUs is a fraction of that. Versions are those of constraints.txt.
ARG PYTHON=3.12

FROM python:${PYTHON}-slim-bookworm AS wheel
WORKDIR /source
COPY . .
RUN python -m pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM python:${PYTHON}-slim-bookworm
ARG RUNTIME=cpu
ARG PIP_EXTRA_INDEX_URL
COPY --from=wheel /wheels /wheels
COPY constraints.txt /wheels/
RUN case "$RUNTIME" in cpu|gpu) ;; *) echo "RUNTIME=$RUNTIME: must be cpu or gpu" >&2; exit 1 ;; esac \
    && wheel="$(ls /wheels/slicemill-*.whl)" \
    && python -m pip install --no-cache-dir -c /wheels/constraints.txt "${wheel}[ingest,train,s3,${RUNTIME}]" \
    && rm -r /wheels \
    && useradd --create-home --uid 1000 slicemill \
    && mkdir /data \
    && chown slicemill:slicemill /data
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
USER 1000
WORKDIR /data
ENTRYPOINT ["slicemill"]
CMD ["--help"]
