"""What embedded shards left for the commit, and the commit."""

import json
import secrets
import shutil
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import lance
import pyarrow as pa
import pyarrow.compute as pc
from lance.file import LanceFileReader
from lance.fragment import FragmentMetadata

from dmpt.base.errors import UserError
from dmpt.base.files import write_text
from dmpt.gallery.deadline import Conflict
from dmpt.gallery.failures import write_failures
from dmpt.gallery.sources import Failure
from dmpt.gallery.store import PATIENCE, Gallery

_FORMAT = 1


@dataclass(frozen=True)
class Done:
    """A shard that is done."""

    index: int
    count: int
    listing: str  # sha256 of the source's keys
    model: Mapping[str, str]  # whose vectors, as a gallery's metadata say it
    columns: Sequence[str]  # of the fragment
    samples: int  # in the shard
    kept: int  # of these, whose content the gallery had
    fragment: dict[str, Any] | None  # as Lance says it; None where nothing was embedded
    failures: Sequence[Failure]

    @classmethod
    def read(cls, path: Path) -> "Done | None":
        """From a file; None where there is none.

        Raises:
            UserError: it is no such file.
        """
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            if content.pop("format") != _FORMAT:
                raise ValueError("another format")
            return cls(**content | {"failures": [Failure(*one) for one in content["failures"]]})
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise UserError(
                f"{path} says of no shard that it is done ({error}); remove it, and run the shard"
            ) from error

    def write(self, path: Path) -> None:
        """By rename; it is then done."""
        write_text(path, json.dumps({"format": _FORMAT, **asdict(self)}))

    @property
    def rows(self) -> int:
        """Of its fragment."""
        return int(self.fragment["physical_rows"]) if self.fragment else 0

    @property
    def files(self) -> list[str]:
        """Of its fragment, below ``data``."""
        return [file["path"] for file in self.fragment["files"]] if self.fragment else []


@dataclass(frozen=True)
class Committed:
    """What a commit brought.

    Attributes:
        version: of the gallery.
        added: rows that are new.
        changed: rows whose pictures had changed.
        kept: samples that were there already.
        failed: files, rows and samples that could not be embedded.
    """

    version: int
    added: int
    changed: int
    kept: int
    failed: int


def shards_folder(out: Path) -> Path:
    """Where shards of a gallery wait for their commit: ``g.shards`` beside ``g.lance``.

    Raises:
        UserError: as of ``beside``.
    """
    return beside(out, ".shards")


def beside(out: Path, ending: str) -> Path:
    """What lies beside ``g.lance`` as ``g`` and an ending.

    Raises:
        UserError: it has no name to be called by: ``.``, ``..`` or ``/``.
    """
    if out.name in ("", ".."):
        raise UserError(f"{out} is no name of a gallery, beside which shards could wait; give one, such as g.lance")
    return out.with_name(f"{out.name.removesuffix('.lance')}{ending}")


def commit(out: Path, only: Collection[str] | None = None) -> Committed:
    """Put what the shards embedded into the gallery, as one version.

    Given again after a kill it goes on; a row is never there twice. What was committed is then removed from the shards'
    folder.

    Args:
        out: the gallery.
        only: names of the shards that are meant (``Shard.name``), where others may lie about and stay; None = all
            there are.

    Raises:
        UserError: a shard is missing, is there twice, or saw another source or model than the others.
    """
    folder = shards_folder(out)
    names = sorted(path.stem for path in folder.glob("*.json"))
    found = {name: Done.read(folder / f"{name}.json") for name in names if only is None or name in only}
    done = {name: one for name, one in found.items() if one is not None}
    refuse_gaps(done, folder)
    gallery = Gallery(out)
    with gallery.writing("the commit", alone=True):
        gallery.refresh()
        failures = sorted({failure for one in done.values() for failure in one.failures}, key=str)
        write_failures(out, failures)
        try:
            changed = gallery.call("the commit", lambda: _append(gallery, done, folder), PATIENCE)
        except Conflict as error:  # where there are no locks
            raise UserError(f"{out}: others wrote meanwhile; give the same command again") from error
        gallery.refresh()
    if only is None:
        away = folder.replace(folder.with_name(f".{folder.name}.{secrets.token_hex(4)}"))  # all at once
        shutil.rmtree(away)
    else:  # others wait for a commit of their own, or are on the way
        for name in done:
            (folder / f"{name}.json").unlink(missing_ok=True)
            shutil.rmtree(folder / name, ignore_errors=True)
        with suppress(OSError):  # not empty
            folder.rmdir()
    rows, kept = sum(one.rows for one in done.values()), sum(one.kept for one in done.values())
    return Committed(gallery.version, rows - changed, changed, kept, len(failures))


def refuse_gaps(done: Mapping[str, Done], folder: Path) -> None:
    """Shards that belong together, each once.

    Args:
        done: by the names of their files.
        folder: of these.

    Raises:
        UserError: they do not, or one is missing.
    """
    if not done:
        raise UserError(f"{folder} holds no shard that is done; run dmpt embed without --commit first")
    for what, of in (
        ("numbers of shards", lambda one: str(one.count)),
        ("models", lambda one: json.dumps(one.model, sort_keys=True)),
        ("listings of the source, which changed meanwhile", lambda one: one.listing),
        ("sets of columns", lambda one: json.dumps(one.columns)),
    ):
        groups = defaultdict[str, list[str]](list)
        for name, one in done.items():
            groups[of(one)].append(name)
        if len(groups) > 1:
            fewest = min(groups.values(), key=len)
            raise UserError(
                f"{folder} holds shards of {len(groups)} {what}; remove those that are not meant ("
                f"{', '.join(f'{name}.json' for name in fewest[:5])}{', ...' if len(fewest) > 5 else ''}), and run "
                "what is then missing"
            )
    by_index = defaultdict[int, list[str]](list)
    for name, one in done.items():
        by_index[one.index].append(name)
    for index, twice in sorted(by_index.items()):
        if len(twice) > 1:
            raise UserError(
                f"{folder}: shard {index} is there twice ({', '.join(f'{name}.json' for name in twice)}); remove one"
            )
    count = next(iter(done.values())).count
    if missing := [index for index in range(count) if index not in by_index]:
        shown = ", ".join(map(str, missing[:10])) + (", ..." if len(missing) > 10 else "")
        raise UserError(
            f"{folder}: {len(missing)} of {count} shards are missing ({shown}); run dmpt embed with --shards "
            f"{missing[0]}/{count}{' and so on' if len(missing) > 1 else ''}, then --commit"
        )


def _append(gallery: Gallery, done: Mapping[str, Done], folder: Path) -> int:
    """One version with what is new of shards, by their names; how many rows it replaces."""
    dataset, data = gallery.dataset, gallery.path / "data"
    there = {file.path for fragment in dataset.get_fragments() for file in fragment.data_files()}
    new = {name: one for name, one in done.items() if one.fragment and not there & {*one.files}}
    if not new:
        return 0
    ids = {field.name(): field.id() for field in dataset.lance_schema.fields()}
    data.mkdir(exist_ok=True)
    fragments = []
    for name, one in sorted(new.items(), key=lambda item: item[1].index):
        assert one.fragment is not None
        for file in one.files:
            if (folder / name / "data" / file).exists():
                (folder / name / "data" / file).replace(data / file)
        # The columns of the shard by the numbers that the gallery has for them.
        fields = [ids[column] for column in one.columns]
        if any(len(file["fields"]) != len(fields) for file in one.fragment["files"]):
            raise UserError(f"{gallery.path} has columns of lists; dmpt gallery add writes to those")
        files = [{**file, "fields": fields} for file in one.fragment["files"]]
        fragments.append(FragmentMetadata.from_json(json.dumps({**one.fragment, "files": files})))
    updated, removed, changed = _without(dataset, _keys(data, new.values()))
    operation = lance.LanceOperation.Update(
        removed_fragment_ids=removed, updated_fragments=updated, new_fragments=fragments
    )
    lance.LanceDataset.commit(dataset, operation, read_version=dataset.version, commit_message="embed")
    return changed


def _keys(data: Path, done: Iterable[Done]) -> pa.Array:
    """Of all rows of these shards."""
    found = [
        LanceFileReader(str(data / file), columns=["key"]).read_all().to_table() for one in done for file in one.files
    ]
    return pa.concat_tables(found).column("key").combine_chunks()


def _without(dataset: lance.LanceDataset, keys: pa.Array) -> tuple[list[FragmentMetadata], list[int], int]:
    """Fragments as they are without rows of these keys, those of which nothing is left, and how many rows that are."""
    updated, removed, changed = list[FragmentMetadata](), list[int](), 0
    if not dataset.count_rows():
        return updated, removed, changed
    for fragment in dataset.get_fragments():
        there = fragment.to_table(columns=["key"]).column("key")
        old = there.filter(pc.is_in(there, keys)).to_pylist()
        if old:
            changed += len(old)
            listed = ", ".join("'{}'".format(key.replace("'", "''")) for key in old)
            left = fragment.delete(f"key IN ({listed})")
            if left is None:
                removed.append(fragment.fragment_id)
            else:
                updated.append(left)
    return updated, removed, changed
