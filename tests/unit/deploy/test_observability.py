"""The dashboard and the alert rules agree with the metrics, with each other and with the operations guide."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from agentstream.telemetry import names as metric_names
from agentstream.telemetry.names import Metric

ROOT = Path(__file__).parents[3]
FOLDER = ROOT / "deploy/observability"
GUIDE = "deploy/guides/operations.md"
METRICS = {metric.name: metric for metric in (*metric_names.FRONTEND_METRICS, *metric_names.WORKER_METRICS)}
# The series that Prometheus itself adds for every target, and the labels that it adds to every series.
MADE_BY_PROMETHEUS = {"up", "scrape_duration_seconds"}
ADDED_LABELS = {"job", "instance"}

SELECTOR = re.compile(r"\b([a-z]+(?:_[a-z]+)+|up)(?:\{([^}]*)\})?(?=\[|\)| |$)", re.MULTILINE)
MATCHER = re.compile(r'(\w+)(=~|!~|!=|=)"([^"]*)"')
GROUPING = re.compile(r"\b(?:by|on) \(([^)]*)\)")
FUNCTIONS = {"histogram_quantile", "label_values"}


def rules() -> list[dict[str, Any]]:
    """Return all rules."""
    groups = yaml.safe_load((FOLDER / "alerts.yaml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


ALERTS = [rule for rule in rules() if "alert" in rule]


def dashboard() -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((FOLDER / "grafana/dashboard.json").read_text())
    return loaded


def panels() -> list[dict[str, Any]]:
    """Return the panels of the dashboard, without rows."""
    return [panel for panel in dashboard()["panels"] if panel["type"] != "row"]


def expressions() -> Iterator[str]:
    """Yield all expressions of the rules and the dashboard."""
    yield from (rule["expr"] for rule in rules())
    yield from (target["expr"] for panel in panels() for target in panel["targets"])


def metric_of(name: str) -> Metric | None:
    """Return the metric of a series. A histogram has three kinds of series."""
    found = METRICS.get(name) or METRICS.get(re.sub(r"_(bucket|count|sum)$", "", name))
    if found is None or (found.name != name) != (found.kind == "histogram"):
        return None
    return found


def complaints(expression: str) -> list[str]:
    """Return the metrics, labels and values in an expression that no process reports."""
    found = []
    known_labels = set(ADDED_LABELS)
    for name, inside in SELECTOR.findall(re.sub(r"agentstream:\w+(:\w+)*", "recorded", expression)):
        if name in MADE_BY_PROMETHEUS or name in FUNCTIONS:
            continue
        metric = metric_of(name)
        if metric is None:
            found.append(f"there is no metric {name}")
            continue
        bounds = {"le": (*map(str, metric.buckets_s), "+Inf")} if name.endswith("_bucket") else {}
        labels = {**(metric.labels or {}), **bounds}
        known_labels |= {*labels}
        for label, operator, value in MATCHER.findall(inside):
            if label not in labels:
                found.append(f"{name} has no label {label}")
            elif labels[label] and "$" not in value:
                wanted = value.split("|") if "~" in operator else [value]
                found += [f"{label} of {name} is never {each}" for each in wanted if each not in labels[label]]
    grouped = {label.strip() for labels in GROUPING.findall(expression) for label in labels.split(",")} - {""}
    if "recorded" not in expression and "agentstream:" not in expression:
        found += [f"nothing there has the label {label}" for label in sorted(grouped - known_labels)]
    return found


@pytest.mark.parametrize("expression", list(dict.fromkeys(expressions())))
def test_every_expression_uses_reported_metrics(expression: str) -> None:
    """Each metric, label and label value in a rule or a panel is one that processes report."""
    assert complaints(expression) == []


@pytest.mark.parametrize(
    ("expression", "complaint"),
    [
        ("sum(agentstream_open_run)", "there is no metric agentstream_open_run"),
        ("agentstream_gaps > 1", "there is no metric agentstream_gaps"),
        ("rate(agentstream_cancel_seconds[5m])", "there is no metric agentstream_cancel_seconds"),
        ("rate(agentstream_gaps_total_bucket[5m])", "there is no metric agentstream_gaps_total_bucket"),
        ("process_resident_memory_bytes", "there is no metric process_resident_memory_bytes"),
        ('agentstream_open_runs{queue="a"} > 1', "agentstream_open_runs has no label queue"),
        ('agentstream_rejected_total{reason="full"}', "reason of agentstream_rejected_total is never full"),
        ('agentstream_rejected_total{reason!~"other|ful"}', "reason of agentstream_rejected_total is never ful"),
        ("sum by (queue) (agentstream_open_runs)", "nothing there has the label queue"),
    ],
)
def test_wrong_expressions_are_found(expression: str, complaint: str) -> None:
    """A metric, label or value that does not exist is reported."""
    assert complaint in complaints(expression)


def test_every_metric_is_shown() -> None:
    """The dashboard shows every metric."""
    shown = {name for panel in panels() for target in panel["targets"] for name, _ in SELECTOR.findall(target["expr"])}
    assert {metric.name for name in shown if (metric := metric_of(name))} == set(METRICS)


@pytest.mark.parametrize("rule", ALERTS, ids=[rule["alert"] for rule in ALERTS])
def test_every_alert_says_what_to_do(rule: dict[str, Any]) -> None:
    """An alert has a severity, says what is wrong, and links to its own section of the operations guide."""
    assert rule["labels"]["severity"] in {"critical", "warning"}
    annotations = rule["annotations"]
    assert set(annotations) == {"summary", "description", "runbook_url"}
    assert annotations["runbook_url"] == f"{GUIDE}#{rule['alert'].lower()}"
    section = re.search(rf"(?m)^### {rule['alert']}\nSeverity: (\w+)\. \S", (ROOT / GUIDE).read_text())
    assert section is not None
    assert section[1] == rule["labels"]["severity"]


def test_the_operations_guide_has_no_other_alerts() -> None:
    """The operations guide has one section for each alert, in the order of the rules, and no others."""
    guide = (ROOT / GUIDE).read_text()
    assert re.findall(r"(?m)^### (Agentstream\w+)$", guide) == [rule["alert"] for rule in ALERTS]


def test_every_alert_has_a_case_that_fires() -> None:
    """The cases for `promtool test rules` make each alert fire, and name only existing alerts."""
    cases = yaml.safe_load((ROOT / "tests/deploy/alerts_cases.yaml").read_text())["tests"]
    fired = {
        sample["labels"].split('"')[1]
        for case in cases
        for query in case["promql_expr_test"]
        for sample in query["exp_samples"]
    }
    assert fired == {rule["alert"] for rule in ALERTS}


def test_every_panel_can_be_read() -> None:
    """Each panel has a title, a unit, queries with a legend, and the data source that the reader selected."""
    source = {"type": "prometheus", "uid": "${datasource}"}
    for panel in panels():
        assert panel["title"]
        assert panel["datasource"] == source
        assert panel["fieldConfig"]["defaults"]["unit"]
        assert panel["type"] in {"stat", "timeseries"}
        for target in panel["targets"]:
            assert target["datasource"] == source
            assert target["legendFormat"] or len(panel["targets"]) == 1
    ids = [panel["id"] for panel in dashboard()["panels"]]
    assert len(set(ids)) == len(ids)
    assert [variable["name"] for variable in dashboard()["templating"]["list"]] == ["datasource", "queue"]


def test_panels_do_not_overlap() -> None:
    """Panels and rows fit into the 24 columns of Grafana without overlap."""
    taken: set[tuple[int, int]] = set()
    for panel in dashboard()["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken
        taken |= cells


def test_grafana_is_provisioned_with_what_compose_mounts() -> None:
    """The provisioned data sources are containers of compose.yaml, which mounts the dashboards where Grafana looks."""
    compose = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]
    provisioning = FOLDER / "grafana/provisioning"
    sources = yaml.safe_load((provisioning / "datasources/agentstream.yaml").read_text())["datasources"]
    assert {source["url"] for source in sources} == {"http://prometheus:9090", "http://jaeger:16686"}
    (provider,) = yaml.safe_load((provisioning / "dashboards/agentstream.yaml").read_text())["providers"]
    mounts = dict(volume.split(":")[:2] for volume in compose["grafana"]["volumes"])
    assert str(Path(mounts["./deploy/observability/grafana/dashboard.json"]).parent) == provider["options"]["path"]
    for service in ("grafana", "prometheus"):
        for volume in compose[service]["volumes"]:
            if volume.startswith("./"):
                assert (ROOT / volume.partition(":")[0]).exists()


# The keys of Grafana's provisioning files that these files may use. Grafana ignores other keys silently.
# https://grafana.com/docs/grafana/latest/administration/provisioning/
SOURCE_KEYS = {"name", "type", "uid", "url", "access", "isDefault", "editable", "jsonData"}
PROVIDER_KEYS = {"name", "type", "folder", "allowUiUpdates", "options"}


def test_grafana_knows_every_key_of_its_files() -> None:
    """The provisioning files have only keys that Grafana reads, and Prometheus is the default data source."""
    provisioning = FOLDER / "grafana/provisioning"
    sources = yaml.safe_load((provisioning / "datasources/agentstream.yaml").read_text())
    providers = yaml.safe_load((provisioning / "dashboards/agentstream.yaml").read_text())
    assert (set(sources), set(providers)) == ({"apiVersion", "datasources"}, {"apiVersion", "providers"})
    assert [source["type"] for source in sources["datasources"] if source.get("isDefault")] == ["prometheus"]
    for source in sources["datasources"]:
        assert {"name", "type", "url"} <= set(source) <= SOURCE_KEYS
    for provider in providers["providers"]:
        assert {"name", "type", "options"} <= set(provider) <= PROVIDER_KEYS
    interval = yaml.safe_load((FOLDER / "prometheus.yml").read_text())["global"]["scrape_interval"]
    assert [source["jsonData"] for source in sources["datasources"] if "jsonData" in source] == [
        {"timeInterval": interval}
    ]


def test_grafana_opens_the_dashboard_that_compose_mounts() -> None:
    """The home page of Grafana is the mounted dashboard, and the choice of a queue reads a label that is reported."""
    grafana = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]["grafana"]
    mounts = dict(reversed(volume.split(":")[:2]) for volume in grafana["volumes"])
    home = grafana["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert (ROOT / mounts[home]).samefile(FOLDER / "grafana/dashboard.json")
    queries = [variable["query"] for variable in dashboard()["templating"]["list"] if variable["type"] == "query"]
    for query in queries:
        found = re.fullmatch(r"label_values\((\w+), (\w+)\)", query["query"])
        assert found
        assert found[2] in (METRICS[found[1]].labels or {})


def test_prometheus_finds_the_containers() -> None:
    """Prometheus discovers front ends and workers by their names in compose.yaml, on the ports of their metrics."""
    compose = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]
    jobs = yaml.safe_load((FOLDER / "prometheus.yml").read_text())["scrape_configs"]
    found = {job["dns_sd_configs"][0]["names"][0]: job["dns_sd_configs"][0]["port"] for job in jobs}
    assert found == {
        "frontend": compose["frontend"]["environment"]["AGENTSTREAM_PORT"],
        "worker": compose["worker"]["environment"]["AGENTSTREAM_METRICS_PORT"],
    }
    for name in found:
        assert set(compose[name]["networks"]) & set(compose["prometheus"]["networks"])
