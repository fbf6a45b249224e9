"""Bulk prediction on a Ray cluster: each core runs one worker with its own copy of the network."""

import logging
import pickle
import platform
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from onecycle.core.errors import InputError, PeerError
from onecycle.core.signals import watched
from onecycle.distributed.ray_cluster import connected, one_line
from onecycle.predict.bulk import ChunkPredictor, ChunkResult
from onecycle.predict.chunks import Chunk


@dataclass(frozen=True)
class RayPredictionEngine:
    """Predicts chunks of image files on the cores of the Ray cluster at `address`."""

    address: str | None

    def predict(self, predictor: ChunkPredictor, chunks: Sequence[Chunk]) -> Iterator[ChunkResult]:
        if not chunks:
            return
        with connected(self.address), watched() as interruption:
            import ray
            import ray.data

            logging.getLogger("ray.data").setLevel(logging.ERROR)
            cores = max(1, int(ray.cluster_resources().get("CPU", 0)))
            # Each chunk is a Ray block of its own. A node that dies loses only the chunks that it was working on.
            rows = ray.data.from_items(
                [{"chunk": pickle.dumps(chunk)} for chunk in chunks], override_num_blocks=len(chunks)
            )
            results = rows.map_batches(
                _Worker,
                fn_constructor_args=[[ray.put(predictor)]],
                batch_size=1,
                num_cpus=1,
                compute=ray.data.ActorPoolStrategy(min_size=1, max_size=cores, initial_size=cores),
            )
            try:
                for row in results.iter_rows():
                    if problem := row.pop("problem"):
                        raise InputError(problem)
                    yield ChunkResult(**row)
            except KeyboardInterrupt:  # Ray ends the iteration with this exception after a signal
                interruption.check()
                raise
            except ray.exceptions.RayError as error:
                raise PeerError(
                    f"Ray stopped: {one_line(error)}; repair the cluster, then repeat the command to continue"
                ) from error


class _Worker:
    """A process of the Ray cluster that predicts the images of one chunk at a time."""

    def __init__(self, predictor: list[Any]) -> None:
        import ray

        self._predictor: ChunkPredictor = ray.get(predictor[0])

    def __call__(self, rows: dict[str, Any]) -> dict[str, list[Any]]:
        (packed,) = rows["chunk"]
        chunk: Chunk = pickle.loads(packed)
        # Errors are returned as text, because Ray would wrap an exception in its own exception with a traceback.
        problem, result = "", ChunkResult(number=chunk.number, images=0, predictions=b"", unreadable=b"")
        try:
            result = self._predictor.predict(chunk)
        except InputError as error:
            problem = str(error)
        except Exception as error:
            problem = f"an error occurred on {platform.node()}: {type(error).__name__}: {error}"
        return {name: [value] for name, value in {**asdict(result), "problem": problem}.items()}
