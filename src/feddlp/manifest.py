"""feddlp.json: what prediction needs beside the weights and a PEFT adapter or a checkpoint does not carry."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from feddlp.data.source import Resizing
from feddlp.errors import UserError
from feddlp.files import read_given
from feddlp.model import Adapt

FILE = "feddlp.json"


class Manifest(BaseModel):
    """Where an exported model comes from, and what it was made for.

    Attributes:
        checkpoint: the base, as `model.checkpoint` named it; "." where the folder itself is a whole checkpoint.
        dtype: of the base's weights in the run.
        resize: how images come to the model's size, as `data.resize`.
        backbone: fingerprint of the base in that dtype.
        client_name: what the data call the client; "" where they do not.
        adapter: "local", the client's own model; "global", the shared adapter.
    """

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    format: Literal[1] = 1
    checkpoint: str
    adapt: Adapt
    dtype: Literal["float32", "bfloat16", "float64"]
    resize: Resizing = "crop"
    backbone: str
    class_names: list[str] = Field(min_length=1)
    template: str
    data: str
    method: str
    client: int
    client_name: str = ""
    seed: int
    round: int
    adapter: Literal["local", "global"]

    @property
    def owner(self) -> str:
        """Whose model it is; a client by its number and, where the data name it, by its name."""
        client = f"client {self.client} ({self.client_name})" if self.client_name else f"client {self.client}"
        return client if self.adapter == "local" else "the server"

    @property
    def merged(self) -> bool:
        return self.checkpoint == "."

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """The manifest of an exported folder.

        Raises:
            UserError: it is no such folder, or the manifest is damaged.
        """
        file = folder / FILE
        try:
            return cls.model_validate_json(read_given(file))
        except OSError as error:
            raise UserError(
                f"{folder} is not a folder that `feddlp export` wrote (it has no readable {FILE}); check the path"
            ) from error
        except ValidationError as error:
            raise UserError(
                f"{file} is damaged or from another version of feddlp ({error.errors()[0]['msg']}); export it again"
            ) from error
