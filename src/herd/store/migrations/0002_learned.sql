-- What the scheduler has learned of the fleet: one row, replaced as a whole. `taken` is Unix
-- seconds; `data` is MessagePack as `herd.core.learned` lays it out.
CREATE TABLE learned (
  id INTEGER PRIMARY KEY CHECK (id = 1),
  taken REAL NOT NULL,
  data BLOB NOT NULL
);
