"""Results of a long run, a JSON file each, so that it can be interrupted and goes on where it stopped."""

import json
import os
from pathlib import Path
from typing import Any

from _shelf import slug


class Kept:
    """Finished results in a folder, all of one ``setting``; those of another one are a ValueError."""

    def __init__(self, folder: Path, setting: dict[str, Any]) -> None:
        self.folder, self.setting = folder, json.loads(json.dumps(setting))
        folder.mkdir(parents=True, exist_ok=True)

    def path(self, name: str) -> Path:
        """Where the result of that name is."""
        return self.folder / f"{slug(name)}.json"

    def load(self, name: str) -> Any:
        """The result of that name; None if it is still to be made."""
        path = self.path(name)
        if not path.exists():
            return None
        try:
            found = json.loads(path.read_text())
            setting, result = found["setting"], found["result"]
        except (ValueError, KeyError, TypeError):
            raise ValueError(f"{path} is damaged; remove it, and it is made again") from None
        if setting != self.setting:
            raise ValueError(f"{path} was made with {setting}, not {self.setting}: use another --out")
        return result

    def save(self, name: str, result: Any) -> None:
        """Keep a result, whole or not at all."""
        unfinished = self.path(name).with_suffix(".tmp")
        unfinished.write_text(json.dumps({"name": name, "setting": self.setting, "result": result}, indent=1) + "\n")
        os.replace(unfinished, self.path(name))
