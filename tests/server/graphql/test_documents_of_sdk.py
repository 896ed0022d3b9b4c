"""Every document that Adaptive's SDK sends is one of this schema, or is refused by name."""

import ast
import inspect
from types import SimpleNamespace

import pytest
from graphql import OperationDefinitionNode, parse, validate

from server.auth import Principal
from server.graphql.context import Context
from server.graphql.document import parsed
from server.graphql.schema import execute, schema

SERVED = {
    "CreateMetric",
    "ListMetrics",
    "DescribeMetric",
    "DescribeMetricAdmin",
    "ListInteractions",
    "ListGroupedInteractions",
    "DescribeInteraction",
    "CreateAbCampaign",
    "CancelABCampaign",
    "ListAbCampaigns",
    "DescribeAbCampaign",
    "ListModels",
    "DescribeModel",
    "DescribeModelAdmin",
    "AddModelsToProject",
    "RemoveModelFromProject",
    "DeployModel",
    "UpdateModel",
    "TerminateModel",
    "CreateProject",
    "ListProjects",
    "DescribeProject",
    "Me",
}


def documents() -> dict[str, str]:
    """By the names of their operations, out of the installed SDK."""
    client = pytest.importorskip("adaptive_sdk.graphql_client.client", reason="pip install adaptive-sdk")
    found = {}
    for node in ast.walk(ast.parse(inspect.getsource(client))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "gql":
            (text,) = [each.value for each in node.args if isinstance(each, ast.Constant)]
            for definition in parse(text).definitions:
                if isinstance(definition, OperationDefinitionNode):
                    found[definition.name.value] = text
    return found


def test_every_document_of_the_inference_workflow_is_valid():
    """Each field it selects is there, and each variable has the type that it says."""
    known = documents()
    assert known.keys() >= SERVED
    for name in sorted(SERVED):
        assert validate(schema._schema, parsed(known[name])) == [], name


async def test_every_other_operation_is_refused_by_name():
    """What trains, grades or manages users is told to be missing, before anything is looked up."""
    known = documents()
    others = known.keys() - SERVED
    assert {"CreateJob", "ListGraders", "CreateDatasetFromMultipartUpload"} <= others
    context = Context(SimpleNamespace(), Principal(None, "nobody", None, None))
    for name in sorted(others):
        answer = await execute(known[name], context, variables=None, operation_name=name)
        (error,) = answer["errors"]
        assert "is not served here" in error["message"], name
        assert error["extensions"]["type"] == "not_supported_error"
