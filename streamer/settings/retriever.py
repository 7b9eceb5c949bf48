"""The settings of the retriever: what a query may ask, how it is searched, and where the model runs."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from streamer.settings.records import IntakeSettings


class RetrieverSettings(IntakeSettings):
    """Queries → answers. A query beyond a ``maximum_…`` is a dead letter, and gets an answer that says so."""

    shards: int = Field(
        1,
        ge=1,
        description="in how many parts the index is (indexer.partitions); clients ask each, and put their answers together",
    )
    group: str = Field("sidstream-retriever", description="the consumer group, after topics.prefix")
    instance: str = Field("0", description="stable name of this instance; unique within the group")
    batch_size: int = Field(16, ge=1, description="queries decoded together at the most")
    gather_size: int = Field(1_000, ge=1, description="queries looked at ahead, so that late ones are answered at once")
    beams: int = Field(50, ge=1, description="of the search; more for a query whose limit is greater")
    maximum_limit: int = Field(
        100, ge=1, description="items an answer at the most, and beams of a query that asks for so many"
    )
    search: Literal["beam", "exact"] = Field(
        "beam",
        description="exact: branch and bound instead of a beam that may drop the beginning of a good SID; a query may ask for "
        "either; not with the marginal layout",
    )
    exact_budget: int = Field(
        4_096,
        ge=1,
        description="prefixes that the model runs for an exact search; an answer says so where they did not do",
    )
    exact_below: int = Field(
        1_000, ge=0, description="a filter that lets through no more items than this is searched exactly"
    )
    filters_kept: int = Field(16, ge=1, description="filters last used, kept current in memory: a byte an item each")
    maximum_query_bytes: int = Field(131_072, ge=256, description="of all fields of a query together")
    maximum_text_characters: int = Field(2_048, ge=1, description="of a query's text")
    maximum_history: int = Field(256, ge=0, description="item ids in a query's history; each of up to 256 bytes")
    maximum_user_bytes: int = Field(256, ge=1, description="of a query's user")
    maximum_exclusions: int = Field(1_000, ge=0, description="item ids in a query's exclude; each of up to 256 bytes")
    maximum_why_not: int = Field(10, ge=0, description="item ids in a query's why_not; each of up to 256 bytes")
    maximum_slate_rules: int = Field(8, ge=0, description="of a query's slate")
    maximum_slate_candidates: int = Field(
        1_000, ge=1, description="items that are looked at to fill a slate; a query's limit, if that is more"
    )
    maximum_filter_clauses: int = Field(64, ge=1, description="operators of a filter, and its alls, anys and nots")
    maximum_filter_depth: int = Field(8, ge=1, description="of alls, anys and nots in one another")
    maximum_filter_entries: int = Field(1_024, ge=1, description="values in a list of a filter")
    maximum_wait_seconds: float = Field(
        30.0, gt=0, description="a query that waited longer gets an error instead of work; its timeout_ms may say less"
    )
    user_queries_per_second: float = Field(0.0, ge=0, description="of each user, in this process; 0: no limit")
    user_query_burst: int = Field(10, ge=1, description="queries that a user may send at once")
    layout: Literal["pinned", "live", "marginal"] = Field(
        "pinned",
        description="pinned: the one that the model was trained on; live: the newest, for a model trained with layer-2 "
        "dropout; marginal: the newest, by exact sums over what the model writes, for any model; it costs more time",
    )
    ranking: Literal["own_probability", "weight_and_recency", "left_out_token", "history_similarity"] = Field(
        "own_probability",
        description="of the items of an answer; own_probability: the SID's times the item's share of the SID's weight; the "
        "others go SID by SID: left_out_token needs layer-2 tokens seen in training, history_similarity compares the "
        "items' codes with those of the history",
    )
    dense: bool = Field(
        True,
        description="find items by their vectors too, and mix what both legs find: new items are hardly found otherwise. It "
        "takes 4 bytes for each number of a vector and item in memory; with ranking own_probability alone",
    )
    boost_of_new: float | None = Field(
        None,
        ge=-20,
        le=20,
        description="raises (or lowers) what vectors say of items that came after training by a factor of e to this power; "
        "absent: as training chose it",
    )
    threads: int = Field(1, ge=1, description="torch threads")
    device: str = Field(
        "auto", description="where the model runs: cpu, cuda:0, mps; auto: a card if there is one, else the processor"
    )
    dtype: Literal["auto", "float32", "bfloat16", "int8"] = Field(
        "auto",
        description="numbers of the model's passes; auto: those of its weights. bfloat16 is faster where the processor or card "
        "multiplies it (avx512_bf16, amx), int8 faster still on a processor (avx512_vnni), with the linear layers alone changed; "
        "answers differ a little (docs/training.md)",
    )
    normaliser: Literal["vocabulary", "layers"] = Field(
        "vocabulary",
        description="what a token's probability is a share of: all tokens, as in training; or those of its layer, which spares a "
        "large vocabulary's head",
    )
