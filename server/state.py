"""What the routes of one API process share, made once at start: `request.app.state.steersman`."""

from dataclasses import dataclass

from server.accounts import Accounts
from server.addressing import Directory
from server.auth import KeyRing
from server.behavior_maker import BehaviorMaker
from server.behaviors import Behaviors
from server.campaign_settling import Settling
from server.campaigns import Campaigns
from server.comparisons import Comparisons
from server.completions import Completions
from server.constraints import ConstraintChecker
from server.embedding_server import EmbeddingServer
from server.errors import NotSupported
from server.feedback import FeedbackStore
from server.interaction_log import InteractionLog
from server.interactions import Interactions
from server.jobs import Jobs
from server.judge import Judge
from server.media_hosts import MediaHosts
from server.observed import ObservedRequests
from server.outcomes import Outcomes
from server.policies import Policies
from server.policy_runs import PolicyRuns
from server.probe import Probe
from server.project_metrics import ProjectMetrics
from server.projects import Projects
from server.served_models import ServedModels
from server.settings import Settings
from server.steering import SteeredModel
from server.store import Store
from server.studio import Studio, Unsteerable
from server.tenants import Tenants
from server.uploads import Uploads
from server.usage import UsageMeter
from server.vectors import Vectors
from server.vllm_serving import Serving


@dataclass(frozen=True, slots=True)
class ServerState:
    settings: Settings
    store: Store
    keyring: KeyRing
    meter: UsageMeter
    models: ServedModels
    checker: ConstraintChecker
    serving: Serving
    judge: Judge
    vectors: Vectors
    jobs: Jobs
    behaviors: Behaviors
    policies: Policies
    policy_runs: PolicyRuns
    studio: Studio | Unsteerable
    observed: ObservedRequests
    media_hosts: MediaHosts
    interactions: Interactions
    interaction_log: InteractionLog
    feedback: FeedbackStore
    metrics: ProjectMetrics
    completions: Completions
    comparisons: Comparisons
    outcomes: Outcomes
    uploads: Uploads
    campaigns: Campaigns
    settling: Settling
    accounts: Accounts
    directory: Directory
    embeddings: EmbeddingServer | None
    probe: Probe
    tenants: Tenants

    @property
    def projects(self) -> Projects:
        return self.directory.projects

    @property
    def behavior_maker(self) -> BehaviorMaker:
        """Raises NotSupported where this server cannot steer."""
        if isinstance(self.studio, Studio):
            return self.studio.behavior_maker
        raise NotSupported(f"steering is not available here: {self.studio.problem}")

    @property
    def steered_model(self) -> SteeredModel | None:
        return self.studio.model if isinstance(self.studio, Studio) else None
