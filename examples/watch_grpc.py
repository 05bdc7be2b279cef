# .venv/bin/python examples/watch_grpc.py ADDRESS "a green star spinning on a black background"

"""Make one video over gRPC and watch it; goes on where it was when the stream breaks off.

Needs a running stack: `.venv/bin/vitascope up`, whose line of JSON has ADDRESS as "grpc". The key comes from
VITASCOPE_API_KEY; that of a local stack is in ~/.local/share/vitascope/api_key.
"""

import os
import sys
import time
import urllib.request
from pathlib import Path

import grpc

from vitascope_proto.v1.videos_pb2 import CreateVideoRequest, GetVideoContentRequest, WatchRequest
from vitascope_proto.v1.videos_pb2_grpc import VideoServiceStub

address = sys.argv[1]
prompt = sys.argv[2] if len(sys.argv) > 2 else "a red ball bouncing on a blue background"
key_file = Path.home() / ".local/share/vitascope/api_key"
metadata = [("authorization", f"Bearer {os.environ.get('VITASCOPE_API_KEY') or key_file.read_text().strip()}")]

with grpc.insecure_channel(address) as channel:
    service = VideoServiceStub(channel)
    video = service.CreateVideo(CreateVideoRequest(prompt=prompt), metadata=metadata)
    last_id, is_over = "", False
    while not is_over:
        try:
            for event in service.Watch(WatchRequest(video_id=video.id, last_event_id=last_id), metadata=metadata):
                what, last_id = event.WhichOneof("what"), event.id or last_id
                print(what, f"{event.progress.step}/{event.progress.steps}" if what == "progress" else "")
            is_over = True
        except grpc.RpcError as error:
            if error.code() is not grpc.StatusCode.UNAVAILABLE:
                raise
            time.sleep(1)
    url = service.GetVideoContent(GetVideoContentRequest(video_id=video.id), metadata=metadata).url
    print("saved", urllib.request.urlretrieve(url, "video.mp4")[0])
