-- 'HERD' in ASCII: tells this file from another program's database.
PRAGMA application_id = 1212502596;

-- One row for each request that has ended. `record` is the whole outcome and comes last, so that
-- reading the columns before it does not touch the pages that a long record overflows into.
-- Times are Unix seconds, durations seconds.
CREATE TABLE outcomes (
  seq INTEGER PRIMARY KEY,
  id TEXT NOT NULL UNIQUE,
  arrived REAL NOT NULL,
  ended REAL NOT NULL,
  ending TEXT NOT NULL,
  dialect TEXT NOT NULL,
  operation TEXT NOT NULL,
  endpoint TEXT NOT NULL,
  model TEXT NOT NULL,
  asked TEXT NOT NULL,
  client TEXT NOT NULL,
  stream INTEGER NOT NULL,
  node TEXT NOT NULL,
  engine TEXT NOT NULL,
  attempts INTEGER NOT NULL,
  retries INTEGER NOT NULL,
  dispatched REAL,
  first_frame REAL,
  waited REAL NOT NULL,
  prompt_tokens INTEGER,
  completion_tokens INTEGER,
  cached_tokens INTEGER,
  finish_reason TEXT NOT NULL,
  predicted REAL,
  error TEXT NOT NULL,
  record NOT NULL
);

CREATE INDEX outcomes_by_end ON outcomes (ended, ending);
CREATE INDEX outcomes_by_ending ON outcomes (ending);
CREATE INDEX outcomes_by_model ON outcomes (model);
CREATE INDEX outcomes_by_node ON outcomes (node);
CREATE INDEX outcomes_by_client ON outcomes (client);
