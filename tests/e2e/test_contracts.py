"""Contracts through the whole product: the document's example, tables as foreign keys, drift of a published table."""

from __future__ import annotations

import re
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from runner.model.errors import Category
from runner.model.manifest import Manifest
from tests.support.site import Site

PAGE = (Path(__file__).parents[2] / "docs" / "contracts.md").read_text("utf-8")
CUSTOMERS = """
apiVersion: v3.1.0
kind: DataContract
id: customers
version: 1.0.0
status: active
schema:
  - name: customers
    properties:
      - {name: customer_id, logicalType: string, physicalType: VARCHAR, primaryKey: true}
"""


def example(mark: str) -> str:
    found = re.search(rf"<!-- contract: {mark} -->\n```\w+\n(.*?)\n```", PAGE, re.DOTALL)
    assert found, f"no example {mark!r}"
    return found[1] + "\n"


@pytest.fixture(scope="module")
def commit(site: Site) -> str:
    """The document's contract, and `staging.customers` with two rows."""
    made = site.commit({"contracts/orders.odcs.yaml": example("whole"), "contracts/customers.odcs.yaml": CUSTOMERS})
    land(site, made, "customers", "customer_id\nada\ngrace\n")
    assert load(site, made, "customers", inputs=[]).failure is None
    return made


def land(site: Site, commit: str, name: str, content: str | bytes) -> None:
    work = {"kind": "extract", "sources": [{"name": "file", "url": site.serve(f"{name}.csv", content)}]}
    spec = site.spec(commit, "extract", work, outputs=[{"dataset": f"landing/{name}", "from": "file"}])
    assert site.end(spec).failure is None


def load(
    site: Site,
    commit: str,
    name: str,
    *,
    inputs: list[dict[str, str]],
    contract: str | None = None,
    format: dict[str, Any] | None = None,
) -> Manifest:
    work = {
        "kind": "load",
        "contract": f"contracts/{contract or name}.odcs.yaml",
        "format": format or {"type": "csv"},
        "max_bad_fraction": 0.8,
    }
    inputs = [{"dataset": f"landing/{name}"}, *inputs]
    return site.end(site.spec(commit, "load", work, inputs=inputs, outputs=[{"dataset": f"staging.{name}"}]))


TABLE = [{"dataset": "staging.customers", "as": "customers"}]


def test_the_documents_example_does_what_the_document_says(site: Site, commit: str) -> None:
    land(site, commit, "orders", example("rows"))
    manifest = load(site, commit, "orders", inputs=TABLE)
    assert manifest.failure is None, manifest.failure
    assert manifest.report.counts == {"rows_read": 8, "rows_loaded": 2, "rows_quarantined": 6}
    rows = site.rows("staging.orders", "order_id, amount, channel")
    assert rows == [(1, Decimal("12.50"), "web"), (6, Decimal("7.00"), "shop")]
    broken = [step.name for step in manifest.report.steps if step.kind == "contract" and step.status == "warn"]
    told = [line.split("  ", 1)[1] for line in example("rules broken").strip().splitlines()]
    assert sorted(broken) == sorted(name for line in told for name in re.split(r", (?=[a-zA-Z]+\()", line))
    assert [step.name for step in manifest.report.steps if step.kind == "drift"] == ["added(channel)"]


def test_quarantine_has_each_bad_row_with_all_its_rules(site: Site, commit: str) -> None:
    land(site, commit, "quarantined", example("rows"))
    manifest = load(site, commit, "quarantined", inputs=TABLE, contract="orders")
    (quarantine,) = [output for output in manifest.outputs if output.quarantine]
    uri = quarantine.files[0].uri
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    local = site.folder / "quarantine.parquet"
    local.write_bytes(site.app.aws.s3().get_object(Bucket=bucket, Key=key)["Body"].read())
    rows = pq.read_table(local).to_pylist()
    shown = "".join(f"{row['_line']}  {', '.join(row['_rules'])}\n" for row in rows)
    assert shown == example("rules broken")
    assert [row["voucher"] for row in rows] == ["", "V12", "", "", "V123", None]


def test_the_table_of_a_foreign_key_is_an_input_like_any_other(site: Site, commit: str) -> None:
    land(site, commit, "linked", example("rows"))
    manifest = load(site, commit, "linked", inputs=TABLE, contract="orders")
    seen = {record.dataset: (record.declared, record.claimed, record.observed) for record in manifest.report.inputs}
    assert seen == {
        "landing/linked": (True, True, "rows"),
        "staging.customers": (True, True, "rows"),
    }


def test_without_the_table_of_a_foreign_key_nothing_is_begun(site: Site, commit: str) -> None:
    land(site, commit, "unlinked", example("rows"))
    manifest = load(site, commit, "unlinked", inputs=[], contract="orders")
    assert manifest.failure is not None
    assert manifest.failure.category is Category.SPEC
    assert "expected exactly one input that is called customers, got none" in manifest.failure.message


def test_a_column_that_comes_and_goes_is_one_of_the_table(site: Site, commit: str) -> None:
    header, *rows = example("rows").splitlines()
    land(site, commit, "drifting", f"{header}\n{rows[0]}\n")
    assert load(site, commit, "drifting", inputs=TABLE, contract="orders").failure is None
    assert site.rows("staging.drifting", "order_id, channel") == [(1, "web")]
    land(
        site,
        commit,
        "drifting",
        "order_id,customer,ordered_on,status,amount,email,region\n2,ada,21.11.2026,open,1,,x\n",
    )
    manifest = load(site, commit, "drifting", inputs=TABLE, contract="orders")
    assert manifest.failure is not None  # every e-mail is missing, where the contract bears half of them
    assert manifest.failure.subject == "nullValues(email)"
    assert site.rows("staging.drifting", "order_id, channel") == [(1, "web")]
    land(
        site,
        commit,
        "drifting",
        "order_id,customer,ordered_on,status,amount,email,region\n2,ada,21.11.2026,open,1,a@b,x\n",
    )
    manifest = load(site, commit, "drifting", inputs=TABLE, contract="orders")
    assert manifest.failure is None, manifest.failure
    assert {step.name for step in manifest.report.steps if step.kind == "drift"} == {
        "missing(voucher)",
        "added(region)",
    }
    assert site.rows("staging.drifting", "order_id, voucher, region") == [(2, None, "x")]


def test_sql_of_a_contract_reaches_no_file(site: Site, commit: str) -> None:
    bad = example("whole").replace("status = 'paid' AND amount IS NULL", "EXISTS (FROM read_text('/etc/hostname'))")
    other = site.commit({"contracts/orders.odcs.yaml": bad})
    land(site, other, "closed", example("rows"))
    manifest = load(site, other, "closed", inputs=TABLE, contract="orders")
    assert manifest.failure is not None
    assert manifest.failure.category is Category.SPEC
    assert "expected a condition on one row, got subquery" in manifest.failure.message


def test_a_document_in_another_encoding_is_loaded_from_below_its_keys(site: Site, commit: str) -> None:
    rows = '{"data": {"customers": [{"customer_id": "zoé"}, {"customer_id": "zoé"}]}, "next": null}'
    land(site, commit, "export", rows.encode("windows-1252"))
    manifest = load(
        site,
        commit,
        "export",
        inputs=[],
        contract="customers",
        format={"type": "json", "rows": ["data", "customers"], "encoding": "windows-1252"},
    )
    assert manifest.failure is None, manifest.failure
    assert site.rows("staging.export") == [("zoé",)]
    assert manifest.report.counts == {"rows_read": 2, "rows_loaded": 1, "rows_quarantined": 1}


def test_loaded_rows_can_be_merged_by_their_key_and_say_what_loaded_them(site: Site, commit: str) -> None:
    output = {"dataset": "staging.merged", "mode": "merge", "key": ["customer_id"], "lineage_columns": True}
    work = {"kind": "load", "contract": "contracts/customers.odcs.yaml", "format": {"type": "csv"}}
    runs = []
    for content in ("customer_id\nada\ngrace\n", "customer_id\ngrace\nhedy\n"):
        land(site, commit, "merged", content)
        runs.append(site.end(site.spec(commit, "load", work, inputs=[{"dataset": "landing/merged"}], outputs=[output])))
    first, second = runs
    assert [first.failure, second.failure] == [None, None]
    assert dict(site.rows("staging.merged", "customer_id, _run_id")) == {
        "ada": str(first.run_id),
        "grace": str(second.run_id),
        "hedy": str(second.run_id),
    }
    quarantine = next(each for each in second.outputs if each.quarantine)
    assert "_run_id" not in {column.name for column in quarantine.columns or ()}
