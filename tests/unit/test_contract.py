"""What a data contract may say, what is refused, and which texts are values of a type."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import duckdb
import pytest
import yaml

from runner.engines.contracts.contract import ENFORCED, Contract, ContractColumn, parse_contract
from runner.engines.contracts.exact_types import exact_value
from runner.engines.contracts.rules import UniqueRule
from runner.model.errors import SpecError

WHAT = "contracts/planes.odcs.yaml"


def column(name: str = "tailnum", physical: str = "VARCHAR", **more: Any) -> dict[str, Any]:
    return {"name": name, "logicalType": "string", "physicalType": physical, **more}


def document(*columns: dict[str, Any], **more: Any) -> dict[str, Any]:
    table = {"name": "planes", "properties": list(columns or [column()])}
    head = {"apiVersion": "v3.2.0", "kind": "DataContract", "id": "planes", "version": "1.0.0", "status": "active"}
    return {**head, "schema": [table], **more}


def parse(stated: object) -> Contract:
    return parse_contract(yaml.safe_dump(stated).encode(), what=WHAT)


def refusal(stated: object) -> str:
    with pytest.raises(SpecError) as caught:
        parse(stated)
    assert caught.value.message.startswith(f"{WHAT}: ")
    return caught.value.message.removeprefix(f"{WHAT}: ")


def test_a_contract_becomes_columns_and_rules() -> None:
    contract = parse(
        document(
            column("carrier", "varchar", primaryKey=True, primaryKeyPosition=2),
            column("flight", "INTEGER", logicalType="integer", primaryKey=True, primaryKeyPosition=1),
            column("fare", "decimal( 12, 2 )", logicalType="number", required=True, unique=True),
            column("at", "TIMESTAMPTZ", logicalType="timestamp"),
        )
    )
    assert contract == Contract(
        table="planes",
        columns=(
            ContractColumn(name="carrier", type="VARCHAR", required=True),
            ContractColumn(name="flight", type="INTEGER", required=True),
            ContractColumn(name="fare", type="DECIMAL(12,2)", required=True),
            ContractColumn(name="at", type="TIMESTAMPTZ", required=False),
        ),
        unique=(UniqueRule(columns=("flight", "carrier")), UniqueRule(columns=("fare",))),
    )
    assert [rule.name for rule in contract.row_rules] + [rule.name for rule in contract.unique] == [
        "required(carrier)",
        "type(carrier: VARCHAR)",
        "required(flight)",
        "type(flight: INTEGER)",
        "required(fare)",
        "type(fare: DECIMAL(12,2))",
        "type(at: TIMESTAMPTZ)",
        "unique(flight, carrier)",
        "unique(fare)",
    ]


def test_a_primary_key_that_is_also_unique_is_one_rule() -> None:
    contract = parse(document(column(primaryKey=True, unique=True)))
    assert contract.unique == (UniqueRule(columns=("tailnum",)),)


def test_the_sample_contracts_are_enforceable() -> None:
    paths = sorted((Path(__file__).parents[2] / "dbt" / "contracts").glob("*.odcs.yaml"))
    assert [parse_contract(path.read_bytes(), what=path.name).table for path in paths] == [
        "airlines",
        "airports",
        "flights",
        "planes",
        "weather",
    ]


def test_what_only_describes_is_let_pass() -> None:
    described = column(
        description="Registration.",
        businessName="Tail number",
        classification="public",
        examples=["N14228"],
        tags=["aircraft"],
        customProperties=[{"property": "steward", "value": "ops"}],
        quality=[],
        partitioned=False,
        partitionKeyPosition=-1,
        semanticType="column",
        physicalName="tailnum",
    )
    stated = document(described, description={"purpose": "Aircraft."}, domain="aviation", tags=["nyc"])
    assert [each.name for each in parse(stated).columns] == ["tailnum"]


def test_a_date_without_quotes_is_text() -> None:
    raw = yaml.safe_dump(document()).encode() + b"contractCreatedTs: 2026-11-21T10:00:00Z\n"
    assert parse_contract(raw, what=WHAT).table == "planes"


@pytest.mark.parametrize(
    ("rule", "value", "got"),
    [
        ("partitioned", True, "True"),
        ("physicalName", "tail_number", "'tail_number'"),
        ("semanticType", "measure", "'measure'"),
    ],
)
def test_a_rule_on_a_column_that_is_not_enforced_is_refused(rule: str, value: object, got: str) -> None:
    message = refusal(document({**column(), rule: value}))
    assert message == f"rule {rule} on column tailnum: expected one of {ENFORCED}, got {got}"


def test_rules_on_the_contract_are_refused_too() -> None:
    assert refusal(document(slaProperties=[{"property": "latency", "value": 1}])).startswith(
        "rule slaProperties on the contract: expected one of"
    )


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("enum", [{"value": "N1"}]),
        ("semanticType", "column"),
        ("synonyms", [{"synonym": "tail"}]),
        ("deprecated", True),
    ],
)
def test_what_3_2_brought_is_no_key_of_3_1(key: str, value: object) -> None:
    stated = document({**column(), key: value})
    assert parse(stated).table == "planes"
    stated["apiVersion"] = "v3.1.0"
    assert refusal(stated) == f"{key} on column tailnum: expected a key of v3.1, got one that v3.2 brought"


def test_3_1_is_still_a_contract() -> None:
    assert parse({**document(column(logicalTypeOptions={"minLength": 5})), "apiVersion": "v3.1.0"}).table == "planes"


@pytest.mark.parametrize(
    ("stated", "message"),
    [
        ({**document(), "apiVersion": "v3.0.2"}, "apiVersion: expected v3.1.x or v3.2.x, got 'v3.0.2'"),
        ({**document(), "apiVersion": 3.1}, "apiVersion: expected v3.1.x or v3.2.x, got 3.1"),
        ({"kind": "DataContract"}, "apiVersion: expected v3.1.x or v3.2.x, got none"),
        (["a"], "expected a mapping at the top, got list"),
        (document(version=1.0), "version: expected string, got 1.0"),
        (document(kind="Contract"), "kind: expected one of ['DataContract'], got 'Contract'"),
        (document(column(required="yes")), "schema[0].properties[0].required: expected boolean, got 'yes'"),
        (document(column(requird=True)), "'requird' was unexpected"),
        (document(owner="ops"), "'owner' was unexpected"),
        (document(schema=[]), "schema: expected exactly one object, got 0"),
        (document(schema=[{"name": "a"}, {"name": "b"}]), "schema: expected exactly one object, got 2"),
        (document(schema=[{"name": "planes"}]), "schema[0].properties: expected at least one column, got none"),
        (document({"name": "a"}), "schema[0].properties[0].logicalType: expected one of string, integer, number, "),
        (document({"name": "a", "logicalType": "string"}), "DECIMAL(p,s) for column a, got none"),
        (document(column("")), "schema[0].properties[0].name: expected a column's name, got ''"),
        (document(column("a\nb")), "schema[0].properties[0].name: expected a column's name, got 'a\\nb'"),
        (document(column("_Line")), "expected a column's name other than _source_file, _line, _rules, _text"),
        (document(column("a"), column("A")), "names that differ in more than case, got 'a' and 'A'"),
        (document(column("a"), column("a")), "names that differ in more than case, got 'a' and 'a'"),
        (document(column(primaryKeyPosition=1, primaryKey=True), column("b", primaryKey=True)), "tailnum: 1, b: -1"),
        (document(column(primaryKeyPosition=2, primaryKey=True)), "expected the positions 1 to 1, each once"),
    ],
)
def test_a_contract_that_is_none_is_refused_by_field(stated: object, message: str) -> None:
    assert message in refusal(stated)


def test_the_key_that_is_wrong_is_named_however_deep_it_is() -> None:
    stated = document(description={"purpose": "x", "authoritativeDefinitions": [{"type": "a", "ur": "b"}]})
    assert refusal(stated).startswith("description.authoritativeDefinitions[0]: ")


def test_yaml_that_is_none_is_refused_with_the_file() -> None:
    with pytest.raises(SpecError, match=r"^contracts/planes.odcs.yaml: expected YAML, got the key 'kind' twice"):
        parse_contract(b"kind: DataContract\nkind: DataContract\n", what=WHAT)
    with pytest.raises(SpecError, match=r"got the key 1, which is not text"):
        parse_contract(b"1: a\n", what=WHAT)


@pytest.mark.parametrize(
    "physical", ["TEXT", "INT", "HUGEINT", "DECIMAL", "DECIMAL(39,2)", "DECIMAL(5,6)", "DECIMAL(0,0)", "INTEGER[]", ""]
)
def test_a_type_that_no_column_can_have_is_refused(physical: str) -> None:
    message = refusal(document(column(physical=physical)))
    assert message.startswith("schema[0].properties[0].physicalType: expected one of BOOLEAN, INTEGER, ")
    assert message.endswith(f"for column tailnum, got {physical!r}")


@pytest.mark.parametrize(
    ("logical", "physical", "expected"),
    [
        ("date", "VARCHAR", "string"),
        ("string", "INTEGER", "integer or number"),
        ("integer", "DECIMAL(5,2)", "number"),
        ("integer", "DOUBLE", "number"),
        ("time", "TIMESTAMP", "timestamp"),
        ("array", "VARCHAR", "string"),
    ],
)
def test_a_logical_type_that_the_column_would_not_keep_is_refused(logical: str, physical: str, expected: str) -> None:
    message = refusal(document(column(physical=physical, logicalType=logical)))
    assert f"logicalType: expected {expected}, as physicalType is {physical}, " in message


FIT = {
    "VARCHAR": ["", " ", "NA", "été", "a\nb", "\0"],
    "BOOLEAN": ["true", "FALSE", "t", "f", "1", "0", "yes", "no"],
    "INTEGER": ["0", "-1", "+5", " 12 ", "517.0", "517.", "007", "2147483647", "-2147483648"],
    "BIGINT": ["9223372036854775807", "-9223372036854775808", "9007199254740993.0"],
    "DOUBLE": ["1", "1.5", ".5", "5.", "-1e-3", "1E5", "nan", "NaN", "-inf", "Infinity", "0.1", "1e-400"],
    "DECIMAL(5,2)": ["1", "1.5", "1.55", "1.5500", "999.99", "-999.99", ".5", "5.", "+0"],
    "DECIMAL(5,0)": ["1", "99999", "1.0"],
    "DATE": ["2013-01-01", "2013-1-5", "2012-02-29", "2013-01-01 00:00:00", "2013-01-01T00:00", "2013/01/05"],
    "TIMESTAMP": ["2013-01-01", "2013-01-01 10:00", "2013-01-01T10:00:59", "2013-01-01 10:00:00.1234560"],
    "TIMESTAMPTZ": [
        "2013-01-01T10:00:00Z",
        "2013-01-01T10:00:00+02:00",
        "2013-01-01T10:00:00-0530",
        "2013-01-01 10:00:00.123456+02",
        "2013-01-01 10:00:00 UTC",
        "2013-01-01 10:00:00",
        "2013-01-01",
    ],
}
LOSE = {
    "BOOLEAN": ["", "2", "on", "wahr", "NA"],
    "INTEGER": ["", " ", "1.5", "1e3", "1E-1", "0x1F", "0b11", "1_000", "2147483648", "1,5", "--1", "٣", "1 2", "nan"],
    "BIGINT": ["9223372036854775808", "1.00000000000000000001", "true"],
    "DOUBLE": ["", "1e400", "-1e400", "0x10", "1_0.5", "1,5", "1e", "."],
    "DECIMAL(5,2)": ["1.555", "1.501", "1000", "999.995", "1e2", "nan", "1_0", "", "."],
    "DECIMAL(5,0)": ["1.5", "100000"],
    "DATE": [
        "2013-02-29",
        "2013-01-01x",
        "2013-01-01 10:00:00",
        "2013-01-01T00:00:00Z",
        "01/02/2013",
        "20130101",
        "infinity",
        "epoch",
        "2013-01-01 (BC)",
        "-2013-01-01",
        "13-01-01",
    ],
    "TIMESTAMP": [
        "2013-01-01T10:00:00Z",
        "2013-01-01T10:00:00+02:00",
        "2013-01-01 10:00:00.1234567",
        "2013-01-01 25:00:00",
        "2013-01-01 10",
        "infinity",
        "10:00",
    ],
    "TIMESTAMPTZ": [
        "2013-01-01 10:00:00.1234567Z",
        "2013-01-01 10:00:00 Europe/Berlin",
        "2013-01-01T10:00:00+25:00",
        "2013-01-01T10:00:00+02:75",
        "2013-01-01T10:00:00 EST",
        "2013-13-01T10:00:00Z",
        "now",
    ],
}


@pytest.mark.parametrize("kind", FIT)
def test_a_text_fits_a_type_exactly_or_not_at_all(kind: str) -> None:
    with duckdb.connect() as connection:
        connection.execute("SET TimeZone = 'UTC'")

        def fits(text: str) -> bool:
            row = connection.execute(f"SELECT {exact_value('text', kind)} FROM (SELECT ? AS text)", [text]).fetchone()
            assert row is not None
            return row[0] is not None

        assert [text for text in FIT[kind] if not fits(text)] == []
        assert [text for text in LOSE.get(kind, []) if fits(text)] == []
