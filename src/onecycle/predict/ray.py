"""The engine that labels parts of many pictures with Ray Data: a network on each core of a cluster."""

import logging
import pickle
import platform
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from onecycle.core.errors import InputError
from onecycle.core.signals import watched
from onecycle.distributed.ray_cluster import connected, in_a_line
from onecycle.predict.chunks import Part
from onecycle.predict.engine import LabelledPart, PartLabeller


@dataclass(frozen=True)
class PicturesOnRay:
    """The cores of the Ray cluster at `address`, each with a worker that loads the network once."""

    address: str | None

    def label(self, labeller: PartLabeller, parts: Sequence[Part]) -> Iterator[LabelledPart]:
        if not parts:
            return
        with connected(self.address), watched() as interruption:
            import ray
            import ray.data

            logging.getLogger("ray.data").setLevel(logging.ERROR)
            cores = max(1, int(ray.cluster_resources().get("CPU", 0)))
            # A part is a block of its own: a node that dies costs the parts that it was at, and no others.
            rows = ray.data.from_items([{"part": pickle.dumps(part)} for part in parts], override_num_blocks=len(parts))
            labelled = rows.map_batches(
                _Worker,
                fn_constructor_args=[[ray.put(labeller)]],
                batch_size=1,
                num_cpus=1,
                compute=ray.data.ActorPoolStrategy(min_size=1, max_size=cores, initial_size=cores),
            )
            try:
                for row in labelled.iter_rows():
                    if refusal := row.pop("refusal"):
                        raise InputError(refusal)
                    yield LabelledPart(**row)
            except KeyboardInterrupt:  # which is what Ray makes of an interruption
                interruption.check()
                raise
            except ray.exceptions.RayError as error:
                raise InputError(
                    f"Ray ended the work: {in_a_line(error)}; the same command goes on once that is mended"
                ) from error


class _Worker:
    """A process of the cluster that labels parts."""

    def __init__(self, labeller: list[Any]) -> None:
        import ray

        self._labeller: PartLabeller = ray.get(labeller[0])

    def __call__(self, rows: dict[str, Any]) -> dict[str, list[Any]]:
        (packed,) = rows["part"]
        part: Part = pickle.loads(packed)
        # An exception would be told as Ray's, with its traceback.
        refusal, done = "", LabelledPart(number=part.number, pictures=0, predictions=b"", unreadable=b"")
        try:
            done = self._labeller.label(part)
        except InputError as error:
            refusal = str(error)
        except Exception as error:
            refusal = f"an error on {platform.node()} ended it: {type(error).__name__}: {error}"
        return {name: [value] for name, value in {**asdict(done), "refusal": refusal}.items()}
