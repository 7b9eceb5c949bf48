"""The settings of the monitor: its window, when a layout is issued, and what is an alert."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from streamer.settings.section import Section


class MonitorSettings(Section):
    """Counts → layouts, alerts, drift. A share is of all live items, 0 to 1."""

    app_id: str = Field("sidstream-monitor", description="names the group, changelog and journal, after topics.prefix")
    interval_seconds: float = Field(1.0, gt=0, description="how often the counts are evaluated")
    drift_interval_seconds: float = Field(5.0, gt=0, description="how often a changed drift record is published")
    bucket_seconds: float = Field(10.0, gt=0, description="of a step in which the window moves on")
    buckets: int = Field(6, ge=1, le=60, description="the rolling window is bucket_seconds × buckets long")

    method: Literal["none", "top_k", "top_p", "all"] = Field(
        "top_k", description="which layer-2 tokens are left out (docs/layouts.md); none: no layout is issued"
    )
    head_size: int | None = Field(None, ge=1, description="K; absent: as many as the bundle's layout has, or M / 10")
    head_share: float = Field(0.85, gt=0, le=1, description="p of top_p")
    exit_factor: float = Field(1.5, ge=1, description="a head token leaves past rank K × this")
    minimum_share_factor: float = Field(2.0, ge=0, description="a head token holds this many times the mean, 1 / M")
    minimum_items: int = Field(1_000, ge=1, description="below this nothing is judged")
    baseline_fill: float = Field(
        0.5, ge=0, description="nor below this part of the items that the bundle was fitted on"
    )
    minimum_interval_seconds: float = Field(30.0, ge=0, description="at most one new layout in this time")
    layout_growth_share: float = Field(0.005, ge=0, description="head tokens have grown when they gained this share")

    growth_share: float = Field(0.01, gt=0, description="alert: a token gained this share beyond its fair part")
    growth_traffic_share: float = Field(0.25, gt=0, description="alert: or this share of all that was gained")
    minimum_growth: int = Field(50, ge=1, description="and at least this many items")
    entropy_change: float = Field(0.05, gt=0, description="alert: a layer's entropy has changed so much since the fit")
    gini_change: float = Field(0.10, gt=0, description="the same of its Gini coefficient")
    standard_deviation_change: float = Field(0.5, gt=0, description="relative change of deviation / mean")
    head_share_change: float = Field(0.10, gt=0, description="of what the most crowded tenth of tokens holds")
    critical_factor: float = Field(2.0, gt=1, description="critical from this many times a threshold")
    clear_factor: float = Field(0.8, gt=0, le=1, description="cleared below this part of a threshold")
    repeat_seconds: float = Field(600.0, gt=0, description="a firing alert is sent again after this time")
    reshortened_seconds: float = Field(60.0, gt=0, description="how long the news of a new layout stays up")

    web_host: str = Field("127.0.0.1", description="where the dashboard listens")
    web_port: int = Field(0, ge=0, le=65535, description="dashboard; 0 switches it off")
