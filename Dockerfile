# surgeon on CUDA. THIS FILE WAS NOT BUILT where it was written: there was neither Docker nor a GPU.
# What it installs was installed there without CUDA, from the same constraints.txt.
#
#   docker build --tag surgeon .
#   docker run --gpus all --volume "$PWD/runs:/work/runs" surgeon rank ...
#   docker run --gpus all --publish 8000:8000 --env SURGEON_API_KEY=... --volume "$PWD/runs:/work/runs" \
#       surgeon serve runs/ranking/best --host 0.0.0.0
#
# The host needs NVIDIA's driver (580 or newer for CUDA 13) and its container toolkit. CUDA's libraries
# come with torch's wheels, so the image needs no CUDA base.
FROM python:3.11-slim-bookworm

# torch.compile and Triton kernels of some architectures call a C compiler.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends gcc libc6-dev git \
    && rm -rf /var/lib/apt/lists/*

ENV NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    PIP_NO_CACHE_DIR=1 \
    TOKENIZERS_PARALLELISM=false \
    HF_HOME=/cache/huggingface

WORKDIR /opt/surgeon
COPY constraints.txt ./
# `torch==2.13.0` of constraints.txt is met by this index's 2.13.0+cu130.
RUN PIP_CONSTRAINT=constraints.txt pip install torch --index-url https://download.pytorch.org/whl/cu130
COPY pyproject.toml README.md LICENSE ./
COPY surgeon surgeon
RUN PIP_CONSTRAINT=constraints.txt pip install '.[data,gguf,serve,json,endpoint]'
COPY recipes recipes
COPY merges merges

# Results are written by this user; /cache keeps what comes from the hub.
RUN useradd --create-home --uid 1000 surgeon && mkdir -p /work /cache && chown surgeon /work /cache
USER surgeon
WORKDIR /work
VOLUME ["/cache"]
ENTRYPOINT ["surgeon"]
CMD ["--help"]
