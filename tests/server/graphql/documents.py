"""GraphQL documents that tests ask."""

from tests.server.graphql.conftest import ADAPTER, BASE

ME = "{ me { email } }"
LIST = """
query List($project: IdOrKey!, $filter: CompletionFilterExpression, $page: CursorPageInput! = {first: 50}) {
  completions(filter: {project: $project, advancedFilter: $filter}, page: $page) {
    totalCount
    nodes {
      id completion createdAt
      model { key projects { key } backbone { key } }
      chatMessages { role content }
      labels { key value }
      directScores { value metric { key hasDirectScores hasComparisonScores projects { key } } }
      comparisonScores {
        project { key metrics { key } modelServices { key } shares { team { key } } }
        metric { key }
        preferedCompletion { id model { key } chatMessages { content } directScores { value } }
        otherCompletion { id createdAt }
      }
    }
  }
}
"""
COUNT = """
query Count($filter: ListCompletionsFilterInput!, $page: CursorPageInput! = {}, $order: [OrderPair!]) {
  completions(filter: $filter, page: $page, order: $order) { totalCount }
}
"""
GROUPS = """
query Groups($page: CursorPageInput!, $shown: CursorPageInput!, $order: [OrderPair!], $inner: [OrderPair!]) {
  completionsGrouped(groupBy: MODEL, filter: {project: "default"}, page: $page, order: $order) {
    nodes { key completions(page: $shown, order: $inner) { nodes { id } } }
  }
}
"""
SCORE = """
mutation Score($id: UUID!, $metric: IdOrKey!, $value: JSON!) {
  addDirectScore(completionId: $id, metricId: $metric, input: {value: $value}) { id value metric { key } }
}
"""
METRIC = """
mutation Metric($project: IdOrKey!, $key: String!) {
  createMetric(project: $project, input: {name: $key, key: $key, kind: SCALAR}) { id key }
}
"""
TEST = "mutation T($input: AbcampaignCreate!) { createAbCampaign(input: $input) { id key } }"
CANCEL = "mutation C($input: IdOrKey!) { cancelAbCampaign(input: $input) }"
ADD = "mutation A($input: AddModelsToProjectInput!) { addModelsToProject(input: $input) { success } }"
REMOVE = "mutation R($input: RemoveModelFromProjectInput!) { removeModelFromProject(input: $input) }"
DEPLOY = "mutation D($input: DeployModelInput!) { deployModel(input: $input) { warnings } }"
UPDATE = "mutation U($input: UpdateModelService!) { updateModelService(input: $input) { key isDefault } }"
TERMINATE = "mutation T($input: IdOrKey!) { terminateModel(idOrKey: $input, force: true) }"
PROJECT = "mutation P($input: ProjectCreate!) { createProject(input: $input) { id } }"


def campaign(key: str = "t", project: str = "default", **changes) -> dict:
    """The input of an A/B test by the metric `ok`."""
    return {
        "key": key,
        "metric": "ok",
        "project": project,
        "modelServices": [BASE, ADAPTER],
        "autoDeploy": False,
        "trafficSplit": 1,
        **changes,
    }


def failure(answer: dict) -> str:
    (error,) = answer["errors"]
    return error["message"]
