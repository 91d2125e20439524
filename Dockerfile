# docker build -t ovenet .
# docker run --rm -v "$PWD":/work ovenet infer camvid-lite0 photo.jpg
# With a GPU (NVIDIA's container toolkit installed): docker run --rm --gpus all -v "$PWD":/work ovenet train --cfg FILE
FROM python:3.12-slim
COPY . /opt/ovenet
RUN pip install --no-cache-dir "/opt/ovenet[export,lite]"
WORKDIR /work
ENTRYPOINT ["ovenet"]
