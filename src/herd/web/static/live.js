"use strict";
// Everything that comes from outside (names, models, errors) goes into the page as text only.

const state = document.getElementById("state");

function row(cells, className) {
  const tr = document.createElement("tr");
  if (className) tr.className = className;
  for (const [text, kind] of cells) {
    const td = document.createElement("td");
    td.textContent = text;
    if (kind) td.className = kind;
    tr.append(td);
  }
  return tr;
}

const number = (value, digits = 0) =>
  value === null || value === undefined ? "" : value.toFixed(digits);

function fleetRows(nodes) {
  const rows = [];
  for (const node of nodes) {
    const name = node.leaving ? `${node.name} (leaving)` : node.name;
    for (const engine of node.engines) {
      const label = `${engine.kind} ${engine.version}`.trim();
      if (!engine.up) {
        rows.push(row([[name, ""], [label, ""], [`down: ${engine.error}`, "bad"]], "bad"));
        continue;
      }
      for (const r of engine.replicas) {
        const resting = r.resting > 0 ? ` (resting ${number(r.resting, 0)} s)` : "";
        rows.push(row([
          [name, ""], [label, "dim"], [r.model, ""], [r.residency + resting, "dim"],
          [number(r.running), "n"], [number(r.planned), "n"], [number(r.slots), "n"],
          [number(r.rates.decode, 1), "n"], [number(r.rates.prefill, 0), "n"],
          [number(r.outcomes), "n dim"],
        ]));
      }
    }
    if (!node.engines.length) rows.push(row([[name, ""], ["no engine found", "dim"]]));
  }
  return rows;
}

function answeredRows(answered) {
  return answered.map((a) => row([
    [a.id, "dim"], [a.model, ""], [a.endpoint, "dim"],
    [a.ending, a.ending === "completed" ? "" : "bad"], [a.node, ""],
    [number(a.waited, 2), "n"], [number(a.took, 2), "n"], [number(a.tokens), "n"], [a.why, "dim"],
  ]));
}

function show(snapshot) {
  const { fleet, answered, total } = snapshot;
  document.querySelector("#fleet tbody").replaceChildren(...fleetRows(fleet.nodes));
  document.querySelector("#answered tbody").replaceChildren(...answeredRows(answered));
  document.getElementById("no-nodes").hidden = fleet.nodes.length > 0;
  state.textContent =
    `${fleet.nodes.length} nodes, ${fleet.running} running, ${fleet.waiting} waiting, ${total} answered`;
  state.className = "";
}

const events = new EventSource("/herd/v1/events");
events.onmessage = (event) => show(JSON.parse(event.data));
events.onerror = () => {
  state.textContent = "the router does not answer; trying again";
  state.className = "bad";
};
