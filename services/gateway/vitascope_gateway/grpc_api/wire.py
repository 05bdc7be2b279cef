"""Protobuf <-> domain for the public VideoService. Names and meanings are those of the REST objects."""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from google.protobuf.json_format import ParseDict
from google.protobuf.message import Message
from google.protobuf.struct_pb2 import Struct

from vitascope_common.errors import InvalidRequestError
from vitascope_common.events import TERMINAL_EVENTS, EventType
from vitascope_gateway import objects
from vitascope_gateway.told import Told
from vitascope_proto.v1 import videos_pb2

MAX_FIELDS = 1000
"""Of a message, each entry of a map counted: no request needs so many."""
DEFAULT_LIMIT, MAX_LIMIT = 20, 100
"""Videos of a page."""
NUM_KEPT = 256
"""How many of the events that were encoded last are kept: all followers of a job want the same ones at about a time."""

_STATUS: Mapping[str, "videos_pb2.VideoStatus"] = {
    "queued": videos_pb2.VIDEO_STATUS_QUEUED,
    "in_progress": videos_pb2.VIDEO_STATUS_IN_PROGRESS,
    "completed": videos_pb2.VIDEO_STATUS_COMPLETED,
    "failed": videos_pb2.VIDEO_STATUS_FAILED,
}
_ORDER = {videos_pb2.ORDER_UNSPECIFIED: False, videos_pb2.ORDER_DESC: False, videos_pb2.ORDER_ASC: True}
"""Whether the oldest come first."""


def create_fields(message: videos_pb2.CreateVideoRequest) -> dict[str, Any]:
    """Return the fields that were given, as the REST API reads them from a body."""
    fields: dict[str, Any] = {}
    for field, value in message.ListFields():
        if field.name == "metadata":
            fields["metadata"] = dict(message.metadata)
        elif field.is_repeated:
            fields[field.name] = list(value)
        elif field.message_type is not None:
            source = value.WhichOneof("source")
            fields[field.name] = "" if source is None else getattr(value, source)
        else:
            fields[field.name] = value
    return fields


def remix_fields(message: videos_pb2.RemixVideoRequest | videos_pb2.EditVideoRequest) -> dict[str, Any]:
    """Return the fields of a video that is drawn over another."""
    strength = {"strength": message.strength} if message.HasField("strength") else {}
    return create_fields(message.request) | strength


def clip_field(message: videos_pb2.Clip) -> dict[str, Any]:
    """Return the field that names a clip, if one is named."""
    source = message.WhichOneof("source")
    if source is None:
        return {}
    return {"video": {"id": message.id} if source == "id" else message.data}


def page_of(message: videos_pb2.ListVideosRequest) -> tuple[str | None, int, bool]:
    """Return after which video a page begins, how many it has, and whether the oldest come first.

    Raises: InvalidRequestError.
    """
    limit = message.limit if message.HasField("limit") else DEFAULT_LIMIT
    if not 1 <= limit <= MAX_LIMIT:
        raise InvalidRequestError(f"limit must be a whole number from 1 to {MAX_LIMIT}; got {limit}.", param="limit")
    if message.order not in _ORDER:
        raise InvalidRequestError("order must be ORDER_ASC or ORDER_DESC.", param="order")
    return message.after if message.HasField("after") else None, limit, _ORDER[message.order]


def video(shown: objects.Video) -> videos_pb2.Video:
    """Translate a Video object."""
    own = ("status", "error", "cost")
    names = [name for name in videos_pb2.Video.DESCRIPTOR.fields_by_name if name not in own]
    given = {name: value for name in names if (value := getattr(shown, name)) is not None}
    error = None if shown.error is None else videos_pb2.VideoError(code=shown.error.code, message=shown.error.message)
    cost = videos_pb2.Cost(**_known(videos_pb2.Cost, shown.cost.model_dump()))
    return videos_pb2.Video(**given, status=_STATUS[shown.status], error=error, cost=cost)


def page(videos: Sequence[objects.Video], has_more: bool) -> videos_pb2.ListVideosResponse:
    """Translate one page."""
    return videos_pb2.ListVideosResponse(videos=[video(one) for one in videos], has_more=has_more)


def model(shown: objects.Model) -> videos_pb2.Model:
    """Translate a model card."""
    names = [name for name in videos_pb2.Model.DESCRIPTOR.fields_by_name if name not in ("defaults", "limits", "price")]
    limits = shown.limits
    return videos_pb2.Model(
        **{name: getattr(shown, name) for name in names},
        defaults=videos_pb2.ModelDefaults(**_known(videos_pb2.ModelDefaults, shown.defaults)),
        limits=videos_pb2.ModelLimits(
            min_num_inference_steps=limits["num_inference_steps"][0],
            max_num_inference_steps=limits["num_inference_steps"][1],
            min_guidance_scale=limits["guidance_scale"][0],
            max_guidance_scale=limits["guidance_scale"][1],
            prompt_max_chars=limits["prompt_max_chars"],
        ),
        price=videos_pb2.Price(currency=shown.price.currency, per_second=shown.price.per_second),
    )


def estimate(shown: objects.VideoEstimate) -> videos_pb2.VideoEstimate:
    """Translate what a request would make."""
    return videos_pb2.VideoEstimate(**_known(videos_pb2.VideoEstimate, shown.model_dump()))


def models(shown: Sequence[objects.Model]) -> videos_pb2.ListModelsResponse:
    """Translate every model card."""
    return videos_pb2.ListModelsResponse(models=[model(one) for one in shown])


@lru_cache(NUM_KEPT)
def event(item: Told) -> bytes:
    """Encode what followers are told."""
    message = videos_pb2.VideoEvent(id=item.id, video_id=item.data["id"])
    if item.type is EventType.PARTIAL:
        message.partial.CopyFrom(ParseDict(dict(item.data), Struct()))
    elif item.type is EventType.SNAPSHOT:
        message.snapshot.CopyFrom(video(objects.Video.model_validate(item.data)))
    else:
        what = getattr(message, item.type.value)
        what.SetInParent()  # an event that says nothing more has happened all the same
        for name, value in _known(type(what), item.data).items():
            setattr(what, name, value)
    if item.type is EventType.PROGRESS and "preview" in item.data:
        preview = item.data["preview"]
        message.progress.preview_step, message.progress.preview_url = preview["step"], preview["url"]
    return message.SerializeToString()


def is_last(item: Told) -> bool:
    """Tell whether nothing comes after this."""
    is_over = item.type is EventType.SNAPSHOT and item.data["status"] in ("completed", "failed")
    return is_over or item.type in TERMINAL_EVENTS


def _known(kind: type[Message], facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return those facts that a message has a field for."""
    names = kind.DESCRIPTOR.fields_by_name
    return {name: value for name, value in facts.items() if name in names and value is not None}


def has_many_fields(raw: bytes, kind: type[Message]) -> bool:
    """Tell whether a message has more than MAX_FIELDS, without making anything of them.

    28 MiB of map entries would keep everybody else's requests waiting for more than a second; pictures are few fields,
    however large. What cannot be read is left to the parser.
    """
    return _num_fields(memoryview(raw), kind.DESCRIPTOR) > MAX_FIELDS


def _num_fields(raw: memoryview, kind: Any) -> int:
    """Count the fields of a message and of those in it, each entry of a map as one, up to MAX_FIELDS and a few."""
    place, num_fields = 0, 0
    while place < len(raw) and num_fields <= MAX_FIELDS:
        tag, place = _varint(raw, place)
        num_fields += 1
        match tag & 7:
            case 0:
                _, place = _varint(raw, place)
            case 1:
                place += 8
            case 2:
                num_bytes, place = _varint(raw, place)
                field = kind.fields_by_number.get(tag >> 3)
                if field is not None and field.message_type is not None and not field.is_repeated:
                    num_fields += _num_fields(raw[place : place + num_bytes], field.message_type)
                place += num_bytes
            case 5:
                place += 4
            case 3 | 4:  # a group, whose fields count like others
                pass
            case _:
                break
    return num_fields


def _varint(raw: memoryview, place: int) -> tuple[int, int]:
    """Return a base 128 varint and the place after it (protobuf's encoding)."""
    value, shift = 0, 0
    while place < len(raw) and shift < 70:
        byte = raw[place]
        value |= (byte & 0x7F) << shift
        place, shift = place + 1, shift + 7
        if byte < 0x80:
            break
    return value, place
