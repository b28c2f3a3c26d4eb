-- The tables of version 1, as it made them. Never to be changed.
CREATE TABLE run (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    started INTEGER NOT NULL,
    revision TEXT NOT NULL,
    cause TEXT NOT NULL,
    full INTEGER NOT NULL
) STRICT;
CREATE TABLE step (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    run INTEGER NOT NULL,
    time INTEGER NOT NULL,
    resource TEXT NOT NULL,
    cause TEXT NOT NULL,
    action TEXT,
    outcome TEXT,
    changes TEXT NOT NULL,
    error TEXT,
    duration INTEGER,
    backup TEXT
) STRICT;
CREATE INDEX step_resource ON step (resource, time);
CREATE INDEX step_time ON step (time);
CREATE INDEX step_open ON step (id) WHERE outcome IS NULL;
CREATE TABLE debt (
    unit TEXT NOT NULL,
    because_of TEXT NOT NULL,
    notify TEXT NOT NULL,
    since INTEGER NOT NULL,
    error TEXT NOT NULL,
    PRIMARY KEY (unit, because_of)
) STRICT;
CREATE TABLE pause (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    begins INTEGER NOT NULL,
    ends INTEGER NOT NULL,
    reason TEXT NOT NULL,
    by TEXT NOT NULL,
    only TEXT NOT NULL
) STRICT;
CREATE TABLE value (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;
INSERT INTO run (started, revision, cause, full) VALUES (4000000000000000, 'r1', 'drift', 0);
INSERT INTO step (run, time, resource, cause, action, outcome, changes, error, duration, backup)
VALUES (1, 4000000000000001, 'file[/a]', 'drift', 'update', 'changed', '[]', NULL, 42, 'abc');
INSERT INTO debt VALUES ('nginx.service', 'file[/a]', 'reload', 4000000000000001, '');
INSERT INTO value VALUES ('health', '[1,2]');
PRAGMA user_version = 1;
