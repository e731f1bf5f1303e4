"""JSON Schemas of the fields that the YAML files of `launch/` use; any other is an error, as it is to the engines.

Sources: the JobSet API `jobset.x-k8s.io/v1alpha2` (kubernetes-sigs/jobset, api/jobset/v1alpha2/jobset_types.go), the
Kubernetes API reference of Job and PodSpec, and SkyPilot's task YAML (docs.skypilot.co, "SkyPilot YAML").
"""

TEXT, COUNT, FLAG = {"type": "string"}, {"type": "integer", "minimum": 0}, {"type": "boolean"}
NAME = {"type": "string", "pattern": "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", "maxLength": 63}
TEXTS = {"type": "array", "items": TEXT, "minItems": 1}


def fields(required: tuple[str, ...] = (), **properties: dict) -> dict:
    return {
        "type": "object",
        "properties": properties,
        "required": list(required),
        "additionalProperties": False,
    }


def many(items: dict) -> dict:
    return {"type": "array", "items": items, "minItems": 1}


def one_of(*values: str) -> dict:
    return {"enum": list(values)}


def names_to(values: dict) -> dict:
    return {"type": "object", "additionalProperties": values}


EXIT_CODES = fields(
    ("operator", "values"),
    containerName=NAME,
    operator=one_of("In", "NotIn"),
    values=many({"type": "integer", "minimum": 1, "maximum": 255}),  # 0 may not be named
)
POD_FAILURE_RULE = fields(
    ("action",),
    action=one_of("FailJob", "FailIndex", "Ignore", "Count"),
    onExitCodes=EXIT_CODES,
    onPodConditions=many(fields(("type", "status"), type=TEXT, status=one_of("True", "False", "Unknown"))),
) | {"oneOf": [{"required": ["onExitCodes"]}, {"required": ["onPodConditions"]}]}

VARIABLE = fields(("name",), name=TEXT, value=TEXT, valueFrom=fields(fieldRef=fields(("fieldPath",), fieldPath=TEXT)))
CONTAINER = fields(
    ("name", "image"),
    name=NAME,
    image=TEXT,
    command=TEXTS,
    args=TEXTS,
    env=many(VARIABLE),
    resources=fields(limits=names_to({"type": ["integer", "string"]})),
    volumeMounts=many(fields(("name", "mountPath"), name=NAME, mountPath=TEXT)),
)
POD = fields(
    ("containers", "restartPolicy"),
    restartPolicy=one_of("Never"),  # what a podFailurePolicy asks for
    terminationGracePeriodSeconds=COUNT,
    serviceAccountName=NAME,
    nodeSelector=names_to(TEXT),
    containers=many(CONTAINER),
    volumes=many(fields(("name",), name=NAME, emptyDir=fields(medium=one_of("Memory", "")))),
)
JOB = fields(
    ("template",),
    parallelism=COUNT,
    completions=COUNT,
    completionMode=one_of("Indexed", "NonIndexed"),
    backoffLimit=COUNT,
    podFailurePolicy=fields(("rules",), rules=many(POD_FAILURE_RULE)),
    template=fields(("spec",), spec=POD),
)
JOBSET = fields(
    ("apiVersion", "kind", "metadata", "spec"),
    apiVersion=one_of("jobset.x-k8s.io/v1alpha2"),
    kind=one_of("JobSet"),
    metadata=fields(("name",), name=NAME, annotations=names_to(TEXT), labels=names_to(TEXT)),
    spec=fields(
        ("replicatedJobs",),
        coordinator=fields(("replicatedJob",), replicatedJob=NAME, jobIndex=COUNT, podIndex=COUNT),
        failurePolicy=fields(
            maxRestarts=COUNT,
            restartStrategy=one_of("Recreate", "BlockingRecreate", "InPlaceRestart"),
            rules=many(
                fields(
                    ("name", "action"),
                    name={"type": "string", "pattern": "^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$"},
                    action=one_of("FailJobSet", "RestartJobSet", "RestartJobSetAndIgnoreMaxRestarts"),
                    onJobFailureReasons=many(
                        one_of(
                            "BackoffLimitExceeded",
                            "DeadlineExceeded",
                            "FailedIndexes",
                            "MaxFailedIndexesExceeded",
                            "PodFailurePolicy",
                        )
                    ),
                    targetReplicatedJobs=many(NAME),
                )
            ),
        ),
        replicatedJobs=many(fields(("name", "template"), name=NAME, replicas=COUNT, template=fields(spec=JOB))),
    ),
)
SKY = fields(
    ("run",),
    name=TEXT,
    num_nodes={"type": "integer", "minimum": 1},
    envs={"type": "object", "patternProperties": {"^[A-Za-z_][A-Za-z0-9_]*$": TEXT}, "additionalProperties": False},
    resources=fields(
        accelerators={"type": "string", "pattern": r"^[\w-]+(:\d+)?$"},
        use_spot=FLAG,
        job_recovery=fields(
            strategy=one_of("FAILOVER", "EAGER_NEXT_REGION"), max_restarts_on_errors=COUNT, recover_on_exit_codes=COUNT
        ),
    ),
    workdir=TEXT,
    setup=TEXT,
    run=TEXT,
)
