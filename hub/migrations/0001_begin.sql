-- Times are Unix milliseconds. Secrets are stored as SHA-256 hashes only: they are 256 bits of chance, so no salt is needed.

CREATE TABLE hub (
    singleton BIGINT PRIMARY KEY CHECK (singleton = 1),
    epoch     BIGINT NOT NULL
);
INSERT INTO hub (singleton, epoch) VALUES (1, 1);

CREATE TABLE hosts (
    id             TEXT PRIMARY KEY,
    grp            TEXT NOT NULL,
    incarnation    BIGINT NOT NULL,
    hostname       TEXT NOT NULL,
    machine        TEXT NOT NULL,
    enrolled_at    BIGINT NOT NULL,
    -- The last check-in of the present incarnation; all NULL before the first.
    checked_in_at  BIGINT,
    boot_id        TEXT,
    seq            BIGINT,
    checkin        TEXT
);

CREATE TABLE join_tokens (
    hash       TEXT PRIMARY KEY,
    grp        TEXT NOT NULL,
    -- Bound to one host, and perhaps to one reimage of it.
    host       TEXT,
    reimage    TEXT,
    uses_left  BIGINT NOT NULL,
    expires_at BIGINT NOT NULL
);

CREATE TABLE bearers (
    hash        TEXT PRIMARY KEY,
    host        TEXT NOT NULL REFERENCES hosts (id),
    incarnation BIGINT NOT NULL,
    -- Which join token and boot it was issued for, so that a lost answer can be repeated until the first check-in.
    issued_for  TEXT NOT NULL,
    boot_id     TEXT NOT NULL,
    used        BIGINT NOT NULL DEFAULT 0,
    revoked_at  BIGINT
);
CREATE INDEX bearers_host ON bearers (host);

CREATE TABLE reimages (
    id            TEXT PRIMARY KEY,
    request       TEXT NOT NULL,
    host          TEXT NOT NULL REFERENCES hosts (id),
    incarnation   BIGINT NOT NULL,
    grp           TEXT NOT NULL,
    state         TEXT NOT NULL,
    why           TEXT NOT NULL,
    summary       TEXT NOT NULL,
    policy        TEXT,
    evidence      TEXT,
    code          TEXT,
    reason        TEXT,
    retry_after   BIGINT,
    grant_ends    BIGINT,
    -- When the present state is left by itself.
    deadline      BIGINT,
    version       BIGINT NOT NULL,
    requested_at  BIGINT NOT NULL,
    updated_at    BIGINT NOT NULL,
    dispatched_at BIGINT,
    released_at   BIGINT,
    UNIQUE (host, request)
);
-- One request a host may be open, whatever the code above this believes.
CREATE UNIQUE INDEX reimages_open ON reimages (host)
    WHERE state NOT IN ('succeeded', 'denied', 'cancelled', 'expired', 'failed', 'quarantined');
CREATE INDEX reimages_deadline ON reimages (deadline) WHERE deadline IS NOT NULL;

CREATE TABLE evidence (
    reimage   TEXT PRIMARY KEY REFERENCES reimages (id),
    sha256    TEXT NOT NULL,
    body      BLOB NOT NULL,
    stored_at BIGINT NOT NULL
);

-- A row is committed before the engine is called. A row without outcome after a restart means: nobody knows.
CREATE TABLE engine_calls (
    id        INTEGER PRIMARY KEY AUTOINCREMENT,
    reimage   TEXT NOT NULL REFERENCES reimages (id),
    engine    TEXT NOT NULL,
    intent_at BIGINT NOT NULL,
    ended_at  BIGINT,
    outcome   TEXT,
    output    TEXT
);

CREATE TABLE audit (
    seq     BIGINT PRIMARY KEY,
    at      BIGINT NOT NULL,
    actor   TEXT NOT NULL,
    action  TEXT NOT NULL,
    subject TEXT NOT NULL,
    detail  TEXT NOT NULL,
    hash    TEXT NOT NULL
);
CREATE INDEX audit_subject ON audit (subject);
CREATE TRIGGER audit_is_never_changed BEFORE UPDATE ON audit BEGIN SELECT RAISE(ABORT, 'the audit log is append-only'); END;
CREATE TRIGGER audit_is_never_deleted BEFORE DELETE ON audit BEGIN SELECT RAISE(ABORT, 'the audit log is append-only'); END;
