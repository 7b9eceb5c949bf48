"""The demo's story, act by act, on a real broker with the real processes; every figure that it shows was measured in it."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Final

import numpy as np
from numpy.typing import NDArray
from rich.live import Live
from rich.text import Text

from demo.alert_watch import AlertWatch
from demo.display import alert_text, census_table, fad_panel, progress_bar, short
from demo.figures import Figures
from demo.filters import show_filters
from demo.found import show_found
from demo.learning import show_learning
from demo.live_queries import LiveQueries
from demo.preparation import TRAINING_SECONDS, Trained, fit, head_size, train
from demo.shop.shop import Fad, choose_fad
from demo.stage import ARRIVAL_SECONDS, READY_SECONDS, SHOWN_ITEMS, DemoError, Stage
from models.bundles.building import Fitted
from models.codebooks.onnx_encoder import OnnxEncoder
from models.sids.census import gini
from models.sids.layout import HEAD_LAYER_INDEX, Layout
from models.terminal import shown
from models.training.settings import TrainingProgress
from retriever.client import Client
from store.reading.reader import IndexReader
from streamer.client.freshness_probe import FreshnessProbe
from streamer.client.publisher import ItemPublisher
from streamer.events.records import Query
from streamer.local.up import Pipeline

LATE_PER_SECOND: Final = 500
FAD_PER_SECOND: Final = 100
# Limits for a machine that is slow or busy; none is waited for when all is well.
_RESHORTENING_SECONDS: Final = 120.0
_CLEARING_SECONDS: Final = 180.0
_WARM_UPDATES: Final = 600


class Story(Stage):
    """Tells the acts in their order; ``tell`` returns the figures for the summary."""

    def tell(self, pipeline: Callable[[], Pipeline]) -> Figures:
        """Prepare, start the pipeline, stream, ask, change, flood, and let the flood go."""
        fitted = self._fit()
        trained = self._train(fitted)
        self.act("Start the pipeline", "Apache Kafka, then assigner, indexer, monitor and retriever, a process each")
        with pipeline() as running:
            self.settings = running.settings
            self.pipeline = running
            self.say(
                f"A broker of our own on {shown(running.settings.kafka.bootstrap_servers)}; logs in {shown(self.log_directory)}."
            )
            self._stream_in()
            with IndexReader(self.settings.index) as reader, Client(self.settings) as client:
                self.client, self.reader = client, reader
                self._latecomers()
                show_found(self)
                self._ask()
                self._change_and_delete()
                show_filters(self)
                show_learning(self, self._fad(trained))
        return self.figures

    # --- before anything streams -------------------------------------------------------------------------------------

    def _fit(self) -> Fitted:
        shop = self.shop
        self.act(
            "Fit the codebooks", f"{len(shop.known):,} products of {shown(shop.name)}, {shop.dimension:,} numbers each"
        )
        started = time.monotonic()
        with progress_bar(self.console) as progress:
            task = progress.add_task("residual k-means", total=None)

            def on_progress(layer: int, iteration: int, _error: float) -> None:
                progress.update(task, description=f"residual k-means, layer {layer + 1}, iteration {iteration + 1}")

            fitted = fit(shop, self.settings.bundle, on_progress)
            progress.update(task, total=1, completed=1, description="residual k-means")
        self.figures.fit_seconds = time.monotonic() - started
        self.console.print(census_table(fitted.census))
        self.say(
            f"{shown(_hourglass(fitted.census))} Layout 1 leaves the {head_size(shop):,} most crowded tokens of layer 2 "
            "out of the SIDs."
        )
        return fitted

    def _train(self, fitted: Fitted) -> Trained:
        self.act(
            "Fine-tune a small language model",
            f"{len(self.shop.examples):,} queries and histories → SIDs, in {TRAINING_SECONDS:.0f} s at most",
        )
        with progress_bar(self.console) as progress:
            task = progress.add_task("training", total=None)

            def on_progress(now: TrainingProgress) -> None:
                progress.update(task, total=now.steps, completed=now.step, description=f"training, loss {now.loss:.2f}")

            trained = train(self.shop, fitted, on_progress)
        figures = self.figures
        figures.train_seconds, figures.loss, figures.parameters = trained.seconds, trained.loss, trained.parameters
        self.say(
            f"{trained.parameters / 1e6:.1f} M parameters, loss {trained.loss:.2f} after {trained.seconds:.0f} s. Trained with "
            "layer-2 dropout, so it may follow the live layout."
        )
        if trained.share < 1:
            figures.trained_share = trained.share
            self.say(
                f"The time was up after {trained.share:.0%} of the steps: enough for the story, and a faster machine learns more."
            )
        return trained

    # --- streaming ---------------------------------------------------------------------------------------------------

    def _stream_in(self) -> None:
        known = self.shop.known
        self.act(
            "Stream the catalogue in",
            f"producer → Kafka → assigner → Kafka → indexer → LMDB, {len(known):,} item updates, the first 100 to warm up",
        )
        self.wait(self.index_exists, READY_SECONDS, "the indexer did not start")
        with progress_bar(self.console) as progress, IndexReader(self.settings.index) as reader:
            task = progress.add_task("retrievable", total=len(known))
            # The processes have just started: what is measured is the pipeline, not the start of four Pythons.
            self.publish(known.items[:100], known.embeddings[:100])
            self.wait_for_items(reader, 100, lambda _count: None)
            started = time.monotonic()
            self.publish(known.items[100:], known.embeddings[100:])
            self.wait_for_items(reader, len(known), lambda count: progress.update(task, completed=count))
            self.figures.burst_seconds = time.monotonic() - started
        self.figures.burst_items = len(known) - 100
        rate = self.figures.burst_items / self.figures.burst_seconds
        self.say(
            f"{self.figures.burst_items:,} items retrievable {self.figures.burst_seconds:.2f} s after the first was published: "
            f"{rate:,.0f} a second."
        )

    def _latecomers(self) -> None:
        known, late = self.shop.known, self.shop.late
        self.act("Latecomers", f"{len(late):,} products that the model has never seen, {LATE_PER_SECOND:d} a second")
        with self.console.status("waiting for the retriever's first answer …"):
            self.first_answer()
        with progress_bar(self.console) as progress, FreshnessProbe(self.settings.index) as probe:
            task = progress.add_task("publishing", total=len(late))
            now = int(time.time() * 1000)  # plus the item's number: the probe tells updates apart by their time
            with ItemPublisher(self.settings) as publisher:
                # A producer that is still connecting, and a broker that is still compiling, are not what is measured.
                for number in self.paced(_WARM_UPDATES, LATE_PER_SECOND):
                    item = known.items[number]
                    publisher.update(item.id, known.embeddings[number], title=item.title, weight=item.weight)
                for number in self.paced(len(late), LATE_PER_SECOND):
                    item, updated_at = late.items[number], now + number
                    probe.sent(item.id, updated_at)
                    publisher.update(
                        item.id, late.embeddings[number], title=item.title, weight=item.weight, updated_at=updated_at
                    )
                    self.live[item.id] = item.title
                    progress.update(task, completed=number + 1)
            missing = probe.wait(ARRIVAL_SECONDS)
        if missing:
            raise DemoError(f"{missing} updates never arrived; see the logs in {self.log_directory}")
        figures = self.figures
        figures.fresh_items = probe.seen
        figures.fresh_p50_ms, figures.fresh_p99_ms = probe.percentile_ms(50), probe.percentile_ms(99)
        self.say(f"Update → retrievable: p50 {figures.fresh_p50_ms:.0f} ms, p99 {figures.fresh_p99_ms:.0f} ms.")

    def _ask(self) -> None:
        self.act("Ask", "a query, a history or both; constrained beam search, so that every answer is a live product")
        titles = self.live
        for query in self.shop.queries:
            answer = self.client.ask(query.text, history=query.history, limit=SHOWN_ITEMS)
            bought = shown("; ".join(short(titles.get(item, item), self.console.width // 3) for item in query.history))
            question = f"[bold]“{shown(query.text)}”[/]" if query.text else "[bold]no words[/]"
            markup = question + (f" [dim]after buying {bought}[/]" if bought else "")
            self.console.print(f"  {markup}", highlight=False)
            self.show(answer)

    def _change_and_delete(self) -> None:
        self.act("Change and delete", "the next answer knows")
        query = self.shop.queries[0].text or "gift"
        before = self.client.ask(query, limit=SHOWN_ITEMS)
        if len(before.items) < 2:
            raise DemoError(f"“{query}” has too few answers to go on with")
        changed, deleted = before.items[0], before.items[1]
        row = {item.id: (part, at) for part in (self.shop.known, self.shop.late) for at, item in enumerate(part.items)}
        part, at = row[changed.item_id]
        title = f"Back in stock: {changed.title}"
        with ItemPublisher(self.settings) as publisher:
            publisher.update(changed.item_id, part.embeddings[at], title=title, weight=part.items[at].weight)
            publisher.delete(deleted.item_id)
        self.live[changed.item_id] = title
        self.wait(
            lambda: self.holds(changed.item_id, title) and self.holds(deleted.item_id, None),
            ARRIVAL_SECONDS,
            "the change did not arrive",
        )
        self.deleted[deleted.item_id] = time.monotonic()
        after = self.client.ask(query, limit=SHOWN_ITEMS)
        self.console.print(f"  [bold]“{shown(query)}”[/]: the first was renamed, the second deleted", highlight=False)
        self.show(after)
        self.figures.deleted_in_answers += sum(item.item_id in self.deleted for item in after.items)

    # --- the fad -----------------------------------------------------------------------------------------------------

    def _fad(self, trained: Trained) -> Fad:
        """The fad that came and went."""
        encoder = OnnxEncoder(trained.bundle.encoder_path)
        with self.reader.snapshot() as snapshot:
            live = snapshot.live_layout() or trained.bundle.layout
        layer2 = [encoder.encode(fad.embeddings)[:, HEAD_LAYER_INDEX] for fad in self.shop.fads]
        chosen = choose_fad(self.shop.fads, layer2, live.head_tokens)
        fad, token = self.shop.fads[chosen], int(np.bincount(layer2[chosen]).argmax())
        self.act(
            "A fad",
            f"{len(fad.items):,} {shown(fad.name)} in {len(fad.items) / FAD_PER_SECOND:.0f} s, while queries keep coming",
        )
        queries = [
            Query(text=fad.query, limit=10),
            *(Query(text=query.text, history=query.history, limit=10) for query in self.shop.queries),
        ]
        # An item may be in an answer from the moment that it was published until its deletion was.
        with (
            AlertWatch(self.settings) as alerts,
            LiveQueries(self.settings, queries, self._may_be_answered) as live_queries,
        ):
            first = self._flood(fad, token, live, live_queries, alerts)
            self._show_reshortening(fad, token, live, encoder)
            self._retire(fad, alerts)
            figures = self.figures
            figures.alerts_fired, figures.alerts_resolved = alerts.fired, alerts.resolved
            figures.queries, figures.unanswered = live_queries.answered, live_queries.unanswered
            figures.invalid_items, figures.layouts = live_queries.invalid_items, set(live_queries.layouts)
            figures.query_p50_ms, figures.query_p95_ms = live_queries.percentile_ms(50), live_queries.percentile_ms(95)
        figures.reshortened_after_seconds = first
        answer = self.client.ask(fad.query, limit=10)
        returned = sum(item.item_id in self.deleted for item in answer.items)
        figures.deleted_in_answers += returned
        self.say(
            f"“{shown(short(fad.query, 60))}” has {len(answer.items)} answers now; {returned:,} of them are of the fad."
        )
        return fad

    def _flood(self, fad: Fad, token: int, before: Layout, queries: LiveQueries, alerts: AlertWatch) -> float | None:
        """Publish the fad and watch; seconds until the layout changed, or ``None``."""
        news: deque[Text] = deque(maxlen=8)
        reshortened: float | None = None
        started = time.monotonic()
        publisher = ItemPublisher(self.settings)
        sent = 0
        with Live(console=self.console, refresh_per_second=4) as screen:
            while True:
                seconds = time.monotonic() - started
                while sent < min(len(fad.items), int(seconds * FAD_PER_SECOND)):
                    item = fad.items[sent]
                    self.live[item.id] = item.title
                    publisher.update(item.id, fad.embeddings[sent], title=item.title, weight=item.weight)
                    sent += 1
                publisher.poll()
                self.pipeline.supervisor.check()
                for alert in alerts.new():
                    news.append(Text(f"{seconds:5.1f} s  ").append_text(alert_text(alert)))
                with self.reader.snapshot() as snapshot:
                    counts, items = snapshot.census()[HEAD_LAYER_INDEX], snapshot.item_count
                    layout = snapshot.live_layout() or before
                if reshortened is None and layout.generation > before.generation and token in layout.head_tokens:
                    reshortened = seconds
                    news.append(
                        Text(
                            f"{seconds:5.1f} s  layout {layout.generation} is live: SIDs of token {token} have lost it",
                            "bold green",
                        )
                    )
                screen.update(fad_panel(seconds, sent, fad, token, counts, items, layout, queries, list(news)))
                done = sent == len(fad.items) and reshortened is not None
                if done or seconds > _RESHORTENING_SECONDS:
                    break
                time.sleep(0.05)
        publisher.flush()
        return reshortened

    def _show_reshortening(self, fad: Fad, token: int, before: Layout, encoder: OnnxEncoder) -> None:
        with self.reader.snapshot() as snapshot:
            after = snapshot.live_layout() or before
            counts = snapshot.census()[HEAD_LAYER_INDEX]
        self.figures.reshortened_items = int(counts[sorted(set(after.head_tokens) - set(before.head_tokens))].sum())
        if after.generation == before.generation:
            self.say(
                f"[yellow]No new layout within {_RESHORTENING_SECONDS:.0f} s: see the monitor's log in "
                f"{shown(self.log_directory)}.[/]"
            )
            return
        codes = encoder.encode(fad.embeddings[:1])[0].tolist()
        self.say(
            f"{shown(short(fad.items[0].title, 60))}: its SID was [cyan]{shown(before.sid_text(codes))}[/], now it is "
            f"[bold cyan]{shown(after.sid_text(codes))}[/]. No item was rewritten: the layout is one small record."
        )

    def _retire(self, fad: Fad, alerts: AlertWatch) -> None:
        self.act("The fad is over", f"{len(fad.items):,} tombstones")
        with ItemPublisher(self.settings) as publisher:
            for item in fad.items:
                publisher.delete(item.id)
        with self.console.status("waiting until they are gone and the alerts clear …"):
            self.wait(lambda: self._gone(fad), ARRIVAL_SECONDS, "the deletions did not arrive")
            self.deleted |= dict.fromkeys((item.id for item in fad.items), time.monotonic())
            deadline = time.monotonic() + _CLEARING_SECONDS
            while alerts.firing and time.monotonic() < deadline:
                for alert in alerts.new():
                    self.console.print(Text("  ").append_text(alert_text(alert)))
                time.sleep(0.1)

    def _gone(self, fad: Fad) -> bool:
        with self.reader.snapshot() as snapshot:
            return not any(snapshot.find([item.id.encode() for item in fad.items]))

    def _may_be_answered(self, item_id: str, asked_at: float) -> bool:
        """Published, and not known to have left the index before the query was asked."""
        return item_id in self.live and self.deleted.get(item_id, asked_at) >= asked_at


def _hourglass(census: NDArray[np.int64]) -> str:
    """What the Gini coefficients of the layers say, and nothing more; ``census``: counts (L, M)."""
    first, second, third = (gini(counts) for counts in census[:3])
    if second <= first:
        return f"Layer 2 is no more crowded than layer 1 here (Gini {second:.2f} and {first:.2f}): no hourglass."
    waist = f"Layer 2 crowds onto far fewer tokens than layer 1 (Gini {second:.2f} against {first:.2f}): the hourglass narrows."
    if third < (first + second) / 2:
        return f"{waist} Layer 3 widens again ({third:.2f})."
    return f"{waist} In a catalogue this small layer 3 does not widen again ({third:.2f})."
