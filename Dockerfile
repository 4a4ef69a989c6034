# docker build -t alexlab .
# docker run --gpus all --shm-size 8g --user $(id -u) -v DIR:/images -v $PWD:/work alexlab train data.root=/images
FROM python:3.13-slim
RUN apt-get update && apt-get install --yes --no-install-recommends git make && rm -rf /var/lib/apt/lists/*
WORKDIR /opt/alexlab
COPY requirements.lock ./
RUN pip install --no-cache-dir 'uv>=0.9,<0.14' && uv pip install --system --no-cache --require-hashes -r requirements.lock
COPY . .
RUN uv pip install --system --no-deps --no-build-isolation .
ENV HOME=/tmp
WORKDIR /work
ENTRYPOINT ["alexlab"]
