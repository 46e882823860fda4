"""Requests and answers of the service, with their limits."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

MAX_K = 1000
MAX_USERS = 1000  # of one request
MAX_ITEMS = 10_000  # of one list in a request
MAX_BODY = 1 << 20  # bytes

RawId = (
    Annotated[int, Field(strict=True, ge=-(2**63), lt=2**63)]
    | Annotated[str, Field(strict=True, max_length=256)]
)
Items = Annotated[list[RawId], Field(max_length=MAX_ITEMS)]
K = Annotated[int, Field(strict=True, ge=1, le=MAX_K, description="Length of the list.")]


class Request(BaseModel):
    """A request body; an unknown key is an error."""

    model_config = ConfigDict(extra="forbid")


class RecommendRequest(Request):
    """One of `user`, `users` and `history`, and what may be offered."""

    user: RawId | None = Field(None, description="Raw id of a user.")
    users: list[RawId] | None = Field(
        None, min_length=1, max_length=MAX_USERS, description="Raw ids of several users, answered one by one."
    )
    history: Items | None = Field(None, description="Raw item ids of somebody whom the model has not seen.")
    k: K = 10
    items: Items | None = Field(None, description="Only these are offered; by default the whole catalogue.")
    exclude: Items | None = Field(None, description="These are not offered.")
    exclude_seen: bool = Field(True, description="Leave out what the user has interacted with.")
    unknown: Literal["popular", "raise"] = Field(
        "popular", description="For a user without a row: the most popular items, or status 404."
    )
    titles: bool = Field(False, description="Return the items' titles as well.")

    @model_validator(mode="after")
    def _one_subject(self) -> RecommendRequest:
        if sum(given is not None for given in (self.user, self.users, self.history)) != 1:
            raise ValueError("give exactly one of user, users and history")
        return self


class ItemsRequest(Request):
    """Items to find neighbours of."""

    items: list[RawId] = Field(min_length=1, max_length=MAX_USERS, description="Raw item ids.")
    k: K = 10
    titles: bool = False


class ScoreRequest(Request):
    """One user and the items to score."""

    user: RawId
    items: Annotated[list[RawId], Field(min_length=1, max_length=MAX_ITEMS)]


class ExplainRequest(Request):
    """One user and one item that was recommended."""

    user: RawId
    item: RawId
    k: K = 5
    titles: bool = False


class UserRequest(Request):
    """One user."""

    user: RawId
    titles: bool = False


class RankedList(BaseModel):
    """Items, the best first."""

    items: list[int | str]
    scores: list[float]
    titles: list[str] | None = None


class Recommendation(RankedList):
    """The list of one user, and where the list came from."""

    source: Literal["model", "history", "popularity"]


class RecommendResponse(Recommendation):
    """The answer to one user or one history."""

    model: str = Field(description="Fingerprint of the model that answered.")


class BatchElement(BaseModel):
    """One user of a batch: a list (status 200) or the reason why there is no list."""

    user: int | str
    status: int
    detail: str | None = None
    items: list[int | str] | None = None
    scores: list[float] | None = None
    titles: list[str] | None = None
    source: Literal["model", "history", "popularity"] | None = None


class BatchResponse(BaseModel):
    """The answers to several users, in the order of the request."""

    results: list[BatchElement]
    model: str


class SimilarResponse(BaseModel):
    """For each item of the request its neighbours."""

    results: list[RankedList]
    model: str


class ScoreResponse(BaseModel):
    """Scores in the order of the request's items."""

    scores: list[float]
    model: str


class ExplainResponse(BaseModel):
    """The user's own interactions that raise the item's score most, the strongest first."""

    items: list[int | str]
    weights: list[float]
    titles: list[str] | None = None
    model: str


class HistoryResponse(BaseModel):
    """Items that a user has interacted with."""

    items: list[int | str]
    titles: list[str] | None = None
    model: str


class ItemsResponse(BaseModel):
    """Items whose title or id contains the query."""

    items: list[int | str]
    titles: list[str] | None = None
    model: str


class ModelResponse(BaseModel):
    """The model that answers."""

    model: str
    name: str
    num_users: int
    num_items: int
    titles: bool
    seen: bool = Field(description="The model was saved with the items that its users have interacted with.")
    whole_numbers: bool = Field(description="User ids are whole numbers, not strings.")
    loaded_at: float = Field(description="Seconds since 1970.")


class Problem(BaseModel):
    """An error, as RFC 9457 describes it."""

    type: str = "about:blank"
    title: str
    status: int
    detail: str
