"""siglip-jax bench build: rows/s and memory of building a large dataset from repeated pictures.

Every row is an item of its own: its picture is read, decoded, hashed and written as any other's. With --audit, what
`siglip-jax audit` takes for the dataset is told too.

siglip-jax bench build --rows=20000
siglip-jax bench build --rows=1000000 --catalog=shop.zip --workdir=/mnt/large --audit=runs/million.html
"""

from __future__ import annotations

from absl import flags

SYNTHETIC_ITEMS = 400


def define_flags(values: flags.FlagValues) -> None:
    flags.DEFINE_integer("rows", 20_000, "Rows to build.", lower_bound=10, flag_values=values)
    flags.DEFINE_string("catalog", "", "As of siglip-jax data; synthetic pictures when absent.", flag_values=values)
    flags.DEFINE_string("workdir", "", "Where the dataset is written, and removed at the end.", flag_values=values)
    flags.DEFINE_string("audit", "", "The page of an audit, an .html file; none when absent.", flag_values=values)
    flags.DEFINE_integer("threads", None, "Of decoding; the machine's cores when absent.", flag_values=values)


def main(values: flags.FlagValues) -> None:
    import pathlib
    import tempfile
    import time

    from input_pipeline.audit.audit_page import check_output
    from input_pipeline.building import build_dataset
    from input_pipeline.catalogue import read_catalogue
    from input_pipeline.synthetic.synthetic_catalogue import write_synthetic_catalogue
    from tools.bench import measuring
    from tools.bench.inputs import repeated_catalogue

    if values.audit:
        check_output(values.audit)
    if values.workdir:
        pathlib.Path(values.workdir).mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=values.workdir or None, prefix="bench-build-") as folder:
        source = values.catalog
        if not source:
            source = f"{folder}/synthetic"
            write_synthetic_catalogue(source, items=SYNTHETIC_ITEMS)
        catalogue = repeated_catalogue.RepeatedCatalogue(read_catalogue(source), rows=values.rows)
        before = time.perf_counter()
        audit = build_dataset(catalogue, f"{folder}/dataset", max_left_out=1, num_threads=values.threads)
        end = repeated_catalogue.Mark(values.rows, time.perf_counter(), *repeated_catalogue.resident())
        size = sum(path.stat().st_size for path in pathlib.Path(folder, "dataset").iterdir())
        told = _audit(f"{folder}/dataset", values.audit) if values.audit else ""
    kept = f"{audit['kept']} of {values.rows} rows kept"
    print(f"{measuring.machine()}; {kept}, pictures of {values.catalog or 'a synthetic catalogue'}")
    lines = [
        [f"checked {mark.rows}", f"{mark.rows / (mark.seconds - before):.0f}", f"{mark.now:.0f}", f"{mark.peak:.0f}"]
        for mark in catalogue.marks
    ]
    whole = end.seconds - before
    lines.append(["split and written", f"{values.rows / whole:.0f}", f"{end.now:.0f}", f"{end.peak:.0f}"])
    print(measuring.table(["rows", "rows/s", "MiB resident", "MiB at most"], lines))
    growth = end.peak - catalogue.marks[0].peak
    more = f"{growth:.0f} MiB more at most than after a tenth of the rows"
    print(f"{whole:.0f} s, {size / 2**20:.0f} MiB written; {more}")
    if told:
        print(told)


def _audit(dataset: str, output: str) -> str:
    """Audits in a process of its own, so that the memory is that of the audit alone."""
    import concurrent.futures
    import multiprocessing

    with concurrent.futures.ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        seconds, before, peak, size, headline = pool.submit(_audited, dataset, output).result()
    memory = f"{peak:.0f} MiB at most, {before:.0f} before it began"
    return f"audit: {seconds:.1f} s, {memory}; {headline}\n{output}: {size / 2**10:.0f} KiB"


def _audited(dataset: str, output: str) -> tuple[float, float, float, int, str]:
    import pathlib

    from input_pipeline.audit import audit_dataset
    from input_pipeline.audit.audit_page import headline
    from tools.bench import measuring
    from tools.bench.inputs import repeated_catalogue

    before = repeated_catalogue.resident()[1]
    audit, seconds = measuring.timed(lambda: audit_dataset(dataset, output))
    return seconds, before, repeated_catalogue.resident()[1], pathlib.Path(output).stat().st_size, headline(audit)
