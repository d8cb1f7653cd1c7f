"""The content of /metrics, in Prometheus' text format."""

from collections.abc import Iterator

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from ftlab.apps.serve.service import Service

TYPE = CONTENT_TYPE_LATEST


class Load(Collector):
    """The counters of a service and of its engine."""

    def __init__(self, service: Service) -> None:
        self.service = service

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics."""
        engine = self.service.engine
        yield GaugeMetricFamily("ftlab_answers_running", "Answers being generated.", engine.running)
        yield GaugeMetricFamily("ftlab_answers_waiting", "Answers in the queue.", len(engine.waiting))
        yield CounterMetricFamily("ftlab_prompt_tokens", "Prompt tokens read.", engine.read)
        yield CounterMetricFamily("ftlab_generated_tokens", "Tokens generated.", engine.generated)
        yield CounterMetricFamily("ftlab_steps", "Generation steps.", engine.steps)
        ended = CounterMetricFamily("ftlab_answers", "Answers that ended, by reason.", labels=["reason"])
        for reason, count in sorted(self.service.finished.items()):
            ended.add_metric([reason], count)
        yield ended


def text(service: Service) -> bytes:
    """Return all metrics of a service."""
    registry = CollectorRegistry()
    registry.register(Load(service))
    return generate_latest(registry)
