"""The tables. Each names the service that writes it; every row carries its tenant.

Times are Unix milliseconds in BIGINT columns: the same on SQLite and PostgreSQL, and comparable in a WHERE.
"""

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import JSONB

METADATA = sa.MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)

JSON = sa.JSON().with_variant(JSONB(), "postgresql")
ROW_ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")  # SQLite numbers rows only in INTEGER columns


def _text(name: str, *, default: str | None = "") -> sa.Column[str]:
    return sa.Column(name, sa.Text, nullable=default is None, server_default=default)


def _count(name: str, default: int | None = 0) -> sa.Column[int]:
    server_default = None if default is None else sa.text(str(default))
    return sa.Column(name, sa.BigInteger, nullable=default is None, server_default=server_default)


def _partial_index(name: str, *columns: str, where: str) -> sa.Index:
    return sa.Index(name, *columns, sqlite_where=sa.text(where), postgresql_where=sa.text(where))


# Written by: gateway (and by `vitascope up` for the first tenant and key).
tenants = sa.Table(
    "tenants",
    METADATA,
    sa.Column("tenant_id", sa.Text, primary_key=True),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("weight", sa.Float, nullable=False, server_default=sa.text("1")),  # share in WFQ, > 0
    _count("max_in_flight", 0),  # tasks of one pool at once; 0 = no cap
    # WFQ classes it is entitled to, separated by commas; the first one is what a request gets that names none
    sa.Column("classes", sa.Text, nullable=False, server_default="standard,batch"),
    _count("num_batches"),  # under way; raised and lowered in the transaction that begins or ends one
    sa.Column("created_at_ms", sa.BigInteger, nullable=False),
)

# Written by: gateway (and by `vitascope up` for the first one). Only the hash of a key is kept.
api_keys = sa.Table(
    "api_keys",
    METADATA,
    sa.Column("key_sha256", sa.Text, primary_key=True),
    sa.Column("tenant_id", sa.Text, sa.ForeignKey("tenants.tenant_id"), nullable=False),
    sa.Column("name", sa.Text, nullable=False),
    _text("scopes"),  # beyond the tenant's own videos, separated by spaces: "admin"
    sa.Column("created_at_ms", sa.BigInteger, nullable=False),
    _count("revoked_at_ms", None),
)

# Inserted by: gateway (admission). Afterwards written by: scheduler (job manager) only.
jobs = sa.Table(
    "jobs",
    METADATA,
    sa.Column("job_id", sa.Text, primary_key=True),
    sa.Column("tenant_id", sa.Text, nullable=False),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("model", sa.Text, nullable=False),
    sa.Column("state", sa.Text, nullable=False),  # JobState
    _text("phase"),  # shown to people: queued, loading, denoising, decoding, postprocessing, ...
    _count("version", 1),  # raised by every state event; 1 = the event "queued"
    _count("done"),
    _count("total"),
    _text("unit"),
    sa.Column("prompt", sa.Text, nullable=False),  # as the client sent it
    sa.Column("params", JSON, nullable=False),  # GenerateParams
    sa.Column("safety", JSON, nullable=False),  # {category, score, policy_version}
    sa.Column("labels", JSON, nullable=False),  # the client's own "metadata"
    sa.Column("class_name", sa.Text, nullable=False, server_default="standard"),  # WFQ class
    sa.Column("traceparent", sa.Text, nullable=False, server_default=""),
    sa.Column("created_at_ms", sa.BigInteger, nullable=False),
    _count("started_at_ms", None),
    _count("finished_at_ms", None),  # exactly when its state is a terminal one
    _count("deadline_at_ms", None),  # when it fails with the code "expired" unless it is over
    _text("retry_of", default=None),  # the job whose request this one repeats
    _text("remixed_from", default=None),  # the job whose video this one changes or continues
    _text("webhook_url", default=None),  # who is told of its end, beside the tenant's endpoints
    _text("webhook_events"),  # of which ends, separated by spaces; "" = all
    _count("expires_at_ms", None),  # when its files may be swept
    _count("swept_at_ms", None),  # when its work files were removed
    _count("deleted_at_ms", None),  # hidden from its tenant since
    _text("error_code", default=None),
    _text("error_message", default=None),
    _count("price_usd_micros", None),  # list price at admission; None: admitted before it was kept
    sa.Column("has_previews", sa.Boolean, nullable=False, server_default=sa.false()),  # its model makes some
    sa.Column("meters", JSON, nullable=False, server_default="{}"),  # {name: value}, of all attempts: see meters.py
    _text("manifest_key", default=None),  # publication: what delivery may serve
    _text("manifest_sha256", default=None),
    sa.Index("ix_jobs_tenant_page", "tenant_id", "created_at_ms", "job_id"),
    sa.Index("ix_jobs_state", "state"),
    sa.Index("ix_jobs_finished", "finished_at_ms"),
    _partial_index("ix_jobs_deadline", "finished_at_ms", "deadline_at_ms", where="deadline_at_ms IS NOT NULL"),
    _partial_index("ix_jobs_to_sweep", "finished_at_ms", "job_id", where="swept_at_ms IS NULL"),
)

# Inserted by: gateway (admission). Afterwards written by: scheduler (job manager) only.
tasks = sa.Table(
    "tasks",
    METADATA,
    sa.Column("task_id", sa.Text, primary_key=True),
    sa.Column("job_id", sa.Text, sa.ForeignKey("jobs.job_id"), nullable=False),
    sa.Column("tenant_id", sa.Text, nullable=False),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("stage", sa.Text, nullable=False),
    _count("shard"),
    sa.Column("executor", sa.Text, nullable=False),
    sa.Column("pool", sa.Text, nullable=False),
    sa.Column("class_name", sa.Text, nullable=False, server_default="standard"),
    _count("priority"),  # within its flow, smaller first
    sa.Column("state", sa.Text, nullable=False),  # TaskState
    _count("attempt"),  # raised by Claim alone; fences every effect
    _text("needs"),  # stage whose tasks must be done before this one is ready; "" = none
    sa.Column("needs_same_shard", sa.Boolean, nullable=False, server_default=sa.false()),  # of that stage only its own
    _count("num_needed"),  # tasks of it that are not done yet
    sa.Column("publishes", sa.Boolean, nullable=False, server_default=sa.false()),  # its outputs name the manifest
    _count("num_failures"),  # attempts in a row that ended unasked without a newer checkpoint
    _count("num_outages"),  # attempts in a row without one that ended because something they need was away
    sa.Column("params", JSON, nullable=False),  # GenerateParams or FinishParams
    sa.Column("inputs", JSON, nullable=False),  # [Artifact]
    sa.Column("outputs", JSON, nullable=False),  # [Artifact], of the attempt that is done
    sa.Column("checkpoints", JSON, nullable=False),  # [Checkpoint + attempt, furthest_done], newest first, at most 2
    _count("done"),
    _count("total"),
    _text("unit"),
    _text("phase"),
    sa.Column("cost_s", sa.Float, nullable=False, server_default=sa.text("0")),  # estimate x group size, seconds
    sa.Column("cost_ratio", sa.Float, nullable=False, server_default=sa.text("1")),  # of `cost_ratios`, in cost_s
    sa.Column("used_s", sa.Float, nullable=False, server_default=sa.text("0")),  # of the running attempt, cumulative
    sa.Column("ran_s", sa.Float, nullable=False, server_default=sa.text("0")),  # of the attempts before, together
    sa.Column(
        "yielded_at_s", JSON, nullable=False, server_default="[]"
    ),  # [running seconds at each yield], newest last
    _count("group_size", 1),  # ranks of the worker's group, as it claimed; before that, as the card says
    sa.Column("yieldable", sa.Boolean, nullable=False, server_default=sa.false()),
    sa.Column("affinity", JSON, nullable=False),  # {model, adapters}
    _text("worker_id", default=None),  # who holds the lease
    _text("epoch", default=None),  # Redis epoch in which it was enqueued; None = not yet
    _count("enqueued_at_ms", None),  # when it was last handed to its queue
    _text("traceparent"),
    sa.Column("created_at_ms", sa.BigInteger, nullable=False),
    _count("claimed_at_ms", None),
    _count("finished_at_ms", None),
    _text("error_code", default=None),
    _text("error_message", default=None),
    sa.UniqueConstraint("job_id", "stage", "shard"),
    sa.Index("ix_tasks_state", "state", "executor"),
    sa.Index("ix_tasks_job", "job_id"),
    sa.Index("ix_tasks_line", "state", "pool", "created_at_ms", "task_id"),
)

# Inserted by: gateway (admission) and scheduler, in the transaction whose effect it carries. Deleted by: scheduler.
outbox = sa.Table(
    "outbox",
    METADATA,
    sa.Column("outbox_id", ROW_ID, primary_key=True, autoincrement=True),
    sa.Column("tenant_id", sa.Text, nullable=False),
    sa.Column("job_id", sa.Text, nullable=False),
    sa.Column("topic", sa.Text, nullable=False),  # "event": append_event; "ready": hand the task to its executor
    sa.Column("payload", JSON, nullable=False),
    sa.Column("traceparent", sa.Text, nullable=False, server_default=""),
    sa.Column("created_at_ms", sa.BigInteger, nullable=False),
    sa.Index("ix_outbox_topic", "topic", "outbox_id"),
    sqlite_autoincrement=True,
)

# Written by: gateway, in the transaction that admits the job.
idempotency_keys = sa.Table(
    "idempotency_keys",
    METADATA,
    sa.Column("tenant_id", sa.Text, primary_key=True),
    sa.Column("key", sa.Text, primary_key=True),  # the client's own, or one derived from API key and body
    sa.Column("body_sha256", sa.Text, nullable=False),
    sa.Column("calls", JSON, nullable=False),  # [{job_id, tries, seen_at_ms, expires_at_ms}], newest first
    sa.Column("expires_at_ms", sa.BigInteger, nullable=False),  # of the last of them
    sa.Index("ix_idempotency_keys_expired", "expires_at_ms"),
)

# Written by: scheduler (job manager). What an attempt really used; one row each, so nothing is charged twice.
ledger = sa.Table(
    "ledger",
    METADATA,
    sa.Column("task_id", sa.Text, primary_key=True),
    sa.Column("attempt", sa.BigInteger, primary_key=True),
    sa.Column("job_id", sa.Text, nullable=False),
    sa.Column("tenant_id", sa.Text, nullable=False),
    sa.Column("used_s", sa.Float, nullable=False),  # busy seconds x group size
    sa.Column("meters", JSON, nullable=False),
    sa.Column("outcome", sa.Text, nullable=False),  # done, failed, yielded, cancelled, lost
    sa.Column("created_at_ms", sa.BigInteger, nullable=False),
    sa.Index("ix_ledger_tenant", "tenant_id", "created_at_ms"),
)

# Written by: scheduler (job manager). Read by: gateway. What undisturbed runs really cost over what the card estimates.
cost_ratios = sa.Table(
    "cost_ratios",
    METADATA,
    sa.Column("pool", sa.Text, primary_key=True),
    sa.Column("model", sa.Text, primary_key=True),
    sa.Column("ratio", sa.Float, nullable=False),  # of two moving averages, actual over estimate; 1 = the card is right
    sa.Column("estimate_s", sa.Float, nullable=False),  # the moving average of what the card estimated
    sa.Column("num_runs", sa.BigInteger, nullable=False),
    sa.Column("updated_at_ms", sa.BigInteger, nullable=False),
)

# Written by: scheduler, on an operator's word. Who gets no more work until the row is deleted.
drains = sa.Table(
    "drains",
    METADATA,
    sa.Column("pool", sa.Text, primary_key=True),
    sa.Column("worker_id", sa.Text, primary_key=True),  # "" = every worker of the pool
    sa.Column("tenant_id", sa.Text, nullable=False),  # whose key asked
    sa.Column("created_at_ms", sa.BigInteger, nullable=False),
)

# Written by: gateway. `num_endpoints` is raised and lowered in the transaction that adds or removes one.
webhook_tenants = sa.Table(
    "webhook_tenants",
    METADATA,
    sa.Column("tenant_id", sa.Text, primary_key=True),
    sa.Column("secret", sa.Text, nullable=False),  # signs for the URLs that requests name
    _text("old_secret", default=None),
    _count("old_secret_expires_at_ms", None),
    _count("num_endpoints"),
    sa.Column("created_at_ms", sa.BigInteger, nullable=False),
)

# Written by: gateway. The webhook sender writes `disabled_at_ms` alone, when the receiver says that it is gone.
webhook_endpoints = sa.Table(
    "webhook_endpoints",
    METADATA,
    sa.Column("endpoint_id", sa.Text, primary_key=True),
    sa.Column("tenant_id", sa.Text, nullable=False),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("url", sa.Text, nullable=False),
    sa.Column("event_types", JSON, nullable=False),  # [type]
    sa.Column("secret", sa.Text, nullable=False),
    _text("old_secret", default=None),
    _count("old_secret_expires_at_ms", None),
    _count("disabled_at_ms", None),  # it gets nothing since
    sa.Column("created_at_ms", sa.BigInteger, nullable=False),
    sa.Column("updated_at_ms", sa.BigInteger, nullable=False),
    sa.Index("ix_webhook_endpoints_tenant", "tenant_id", "created_at_ms", "endpoint_id"),
)

# Inserted by: scheduler (job manager), in the transaction that ends the job; gateway (replays). Afterwards written by:
# webhook sender only.
webhook_deliveries = sa.Table(
    "webhook_deliveries",
    METADATA,
    sa.Column(
        "delivery_id", sa.Text, primary_key=True
    ),  # of event and receiver: none is made twice; random for replays
    sa.Column("tenant_id", sa.Text, nullable=False),
    sa.Column("event_id", sa.Text, nullable=False),  # the `webhook-id`
    sa.Column("event_type", sa.Text, nullable=False),
    sa.Column("job_id", sa.Text, nullable=False),
    _text("endpoint_id", default=None),  # None: the request named a URL
    sa.Column("url", sa.Text, nullable=False),  # where it went last; an endpoint's is looked up at each attempt
    sa.Column("host", sa.Text, nullable=False),  # of `url`: deliveries to one receiver share a few places
    sa.Column("payload", sa.Text, nullable=False),  # what is signed and sent, the same at each attempt
    sa.Column("state", sa.Text, nullable=False, server_default="pending"),  # pending, delivered, failed
    _count("num_attempts"),  # raised when one begins
    sa.Column("next_at_ms", sa.BigInteger, nullable=False),  # of the next attempt, or when the lease of this one ends
    _text("claim", default=None),  # the attempt that is being made
    _text("traceparent"),
    _count("last_attempt_at_ms", None),
    _count("last_status", None),  # None: there was no answer
    _text("last_error", default=None),
    _count("last_duration_ms", None),
    sa.Column("created_at_ms", sa.BigInteger, nullable=False),  # attempts end a day later
    _count("finished_at_ms", None),
    sa.Index("ix_webhook_deliveries_page", "tenant_id", "created_at_ms", "delivery_id"),
    sa.Index("ix_webhook_deliveries_job", "job_id"),
    _partial_index("ix_webhook_deliveries_due", "next_at_ms", where="state = 'pending'"),
    _partial_index("ix_webhook_deliveries_finished", "finished_at_ms", where="finished_at_ms IS NOT NULL"),
)

# Written by: gateway.
files = sa.Table(
    "files",
    METADATA,
    sa.Column("file_id", sa.Text, primary_key=True),
    sa.Column("tenant_id", sa.Text, nullable=False),
    sa.Column("filename", sa.Text, nullable=False),
    sa.Column("purpose", sa.Text, nullable=False),  # batch, batch_output
    sa.Column("key", sa.Text, nullable=False),  # in the object store; the row is written first, and deleted last
    _count("num_bytes"),
    _text("sha256"),
    sa.Column("created_at_ms", sa.BigInteger, nullable=False),
    _count("stored_at_ms", None),  # None: its bytes may be missing, and nobody sees it
    sa.Column("expires_at_ms", sa.BigInteger, nullable=False),  # when object and row may be swept
    _count("deleted_at_ms", None),  # hidden from its tenant since
    sa.Index("ix_files_page", "tenant_id", "created_at_ms", "file_id"),
    sa.Index("ix_files_expired", "expires_at_ms"),
)

# Written by: gateway.
batches = sa.Table(
    "batches",
    METADATA,
    sa.Column("batch_id", sa.Text, primary_key=True),
    sa.Column("tenant_id", sa.Text, nullable=False),
    sa.Column("input_file_id", sa.Text, nullable=False),
    sa.Column("labels", JSON, nullable=False),  # the client's own "metadata"
    _text("base_url"),  # under which its client reached us, for the URLs in the output
    sa.Column("output_ttl_ms", sa.BigInteger, nullable=False),  # how long output and error file are kept
    sa.Column("state", sa.Text, nullable=False),  # BatchState
    sa.Column("errors", JSON, nullable=False),  # [{code, message, param, line}], why it failed
    _count("num_lines"),
    _count("num_completed"),  # as of the last look at its jobs
    _count("num_failed"),
    _text("output_file_id", default=None),
    _text("error_file_id", default=None),
    sa.Column("created_at_ms", sa.BigInteger, nullable=False),
    sa.Column("deadline_at_ms", sa.BigInteger, nullable=False),  # when lines that are not over expire
    _count("in_progress_at_ms", None),
    _count("finalizing_at_ms", None),
    _count("cancelling_at_ms", None),
    _count("ended_at_ms", None),  # exactly when its state is a terminal one
    sa.Column("next_at_ms", sa.BigInteger, nullable=False),  # when work on it is due, or the lease on it ends
    _text("claim", default=None),  # who works on it
    sa.Index("ix_batches_page", "tenant_id", "created_at_ms", "batch_id"),
    _partial_index("ix_batches_due", "next_at_ms", where="ended_at_ms IS NULL"),
    _partial_index("ix_batches_input", "input_file_id", where="ended_at_ms IS NULL"),
    sa.Index("ix_batches_ended", "ended_at_ms"),
)

# Written by: gateway; `job_id` in the transaction that admits the job.
batch_lines = sa.Table(
    "batch_lines",
    METADATA,
    sa.Column("batch_id", sa.Text, sa.ForeignKey("batches.batch_id"), primary_key=True),
    sa.Column("line", sa.BigInteger, primary_key=True, autoincrement=False),  # of the input file, from 1
    sa.Column("tenant_id", sa.Text, nullable=False),
    sa.Column("custom_id", sa.Text, nullable=False),
    sa.Column("start_byte", sa.BigInteger, nullable=False),  # where the line lies in the input file
    sa.Column("num_bytes", sa.BigInteger, nullable=False),
    sa.Column("state", sa.Text, nullable=False),  # LineState: pending, admitted, done, failed
    _text("job_id", default=None),
    _count("num_tries"),  # admissions that ended because something they need was away
    _count("status_code", None),  # of the answer that a request as this one gets, when it is refused
    sa.Column("error", JSON, nullable=False),  # {code, message, …}; {} = none but its job's
    sa.Index("ix_batch_lines_state", "batch_id", "state", "num_tries", "line"),
    sa.Index("ix_batch_lines_job", "job_id"),
)
