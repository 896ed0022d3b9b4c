"""The schema: the inference workflow of Adaptive's API, and how a document of it is executed."""

import asyncio
import logging
from collections.abc import Iterator, Mapping
from typing import Any

import strawberry
from graphql import DocumentNode, GraphQLError, OperationDefinitionNode, OperationType, get_operation_ast
from strawberry.extensions import SchemaExtension, ValidationCache
from strawberry.schema.config import StrawberryConfig
from strawberry.types import get_object_definition
from strawberry.types.execution import ExecutionContext

from server.errors import Json, NotSupported, SteersmanError, Unavailable, graphql_error
from server.graphql.campaigns import CampaignMutations, CampaignQueries
from server.graphql.context import Context
from server.graphql.document import parsed, root_fields
from server.graphql.groups import GroupQueries
from server.graphql.interactions import InteractionMutations, InteractionQueries
from server.graphql.metrics import MetricMutations, MetricQueries
from server.graphql.model_services import ModelMutations
from server.graphql.models import ModelQueries
from server.graphql.projects import ProjectMutations, ProjectQueries
from server.graphql.scalars import SCALARS
from server.graphql.users import UserQueries

logger = logging.getLogger("vllm.steersman")

MAX_SECONDS, MAX_ERRORS = 60, 20


@strawberry.type
class Query(
    InteractionQueries,
    GroupQueries,
    MetricQueries,
    CampaignQueries,
    ModelQueries,
    ProjectQueries,
    UserQueries,
):
    pass


@strawberry.type
class Mutation(InteractionMutations, MetricMutations, CampaignMutations, ModelMutations, ProjectMutations):
    pass


class _Parsed(SchemaExtension):
    """The document that `execute` has read already."""

    def on_parse(self) -> Iterator[None]:
        self.execution_context.graphql_document = parsed(self.execution_context.query or "")
        yield


class _Schema(strawberry.Schema):
    def process_errors(
        self, errors: list[GraphQLError], execution_context: ExecutionContext | None = None
    ) -> None:
        """They are logged where they are shown."""


schema = _Schema(
    query=Query,
    mutation=Mutation,
    extensions=[_Parsed, ValidationCache],
    config=StrawberryConfig(scalar_map=SCALARS),
)


async def execute(
    query: str, context: Context, *, variables: Mapping[str, Any] | None, operation_name: str | None
) -> Json:
    """The answer's body; whatever is wrong stands in its `errors`."""
    try:
        _require_served(_operation(parsed(query), operation_name))
        async with asyncio.timeout(MAX_SECONDS):
            result = await schema.execute(
                query,
                variable_values=dict(variables or {}),
                context_value=context,
                operation_name=operation_name,
            )
    except GraphQLError as error:
        return {"errors": [_shown(error)]}
    except SteersmanError as error:
        return {"errors": [graphql_error(error)]}
    except TimeoutError:
        return {"errors": [graphql_error(Unavailable(f"It took longer than {MAX_SECONDS} seconds."))]}
    if not result.errors:
        return {"data": result.data}
    errors = [_shown(error) for error in result.errors[:MAX_ERRORS]]
    if len(result.errors) > MAX_ERRORS:
        errors.append({"message": f"There are {len(result.errors) - MAX_ERRORS} more errors."})
    begun = result.data is not None or any(error.path for error in result.errors)
    return {"data": result.data, "errors": errors} if begun else {"errors": errors}


def _operation(document: DocumentNode, name: str | None) -> OperationDefinitionNode:
    operation = get_operation_ast(document, name)
    if operation is not None:
        return operation
    if name is not None:
        raise GraphQLError(f"The document has no operation {name!r}.")
    raise GraphQLError("The document has no operation, or several: name one as operationName.")


def _require_served(operation: OperationDefinitionNode) -> None:
    """Raises NotSupported for what Adaptive has and this server has not, by the name of its field."""
    if operation.operation is OperationType.SUBSCRIPTION:
        raise NotSupported("Subscriptions are not served here.")
    served = _SERVED[operation.operation]
    for name in root_fields(operation):
        if name not in served and not name.startswith("__"):
            raise NotSupported(
                f"{name!r} is not served here: of Adaptive's GraphQL there are interactions, metrics, A/B"
                " tests, models and projects, and nothing of training, data sets, graders and teams."
            )


def _names(root: type) -> frozenset[str]:
    fields = get_object_definition(root, strict=True).fields
    return frozenset(map(schema.config.name_converter.get_graphql_name, fields))


_SERVED = {OperationType.QUERY: _names(Query), OperationType.MUTATION: _names(Mutation)}


def _shown(error: GraphQLError) -> Json:
    """`error` as clients read it: what is our own fault is logged, and told without its details."""
    cause = error.original_error
    if isinstance(cause, SteersmanError):
        shown = graphql_error(cause)
    elif cause is None or isinstance(cause, GraphQLError):
        shown = {"message": error.message}
    else:
        logger.error("A GraphQL resolver failed at %s", error.path, exc_info=cause)
        shown = {"message": "internal error"}
    if error.locations:
        shown["locations"] = [{"line": each.line, "column": each.column} for each in error.locations]
    if error.path:
        shown["path"] = list(error.path)
    return shown
