"use strict";
// Everything that comes from outside (names, models, errors) goes into the page as text only.

const state = document.getElementById("state");

function labelsOf(table) {
  return Array.from(document.querySelectorAll(`${table} th`), (th) => th.textContent);
}

const fleetLabels = labelsOf("#fleet");
const answeredLabels = labelsOf("#answered");

/** A table row of `[text, classes]`; the last cell takes the columns that are left over. */
function row(labels, cells) {
  const tr = document.createElement("tr");
  cells.forEach(([text, classes], index) => {
    const td = document.createElement("td");
    td.textContent = text;
    td.className = classes;
    td.dataset.label = labels[index];
    tr.append(td);
  });
  tr.lastChild.colSpan = labels.length - cells.length + 1;
  return tr;
}

const number = (value, digits = 0) =>
  value === null || value === undefined ? "" : value.toFixed(digits);

function replicaRow(name, engine, r) {
  const resting = r.resting > 0 ? `, resting ${Math.ceil(r.resting)} s` : "";
  return row(fleetLabels, [
    [name, "title long"], [engine, "dim plain"], [r.model, "long plain"],
    [r.residency + resting, "dim"],
    [number(r.running), "n"], [number(r.planned), "n"], [number(r.slots), "n"],
    [number(r.rates.decode, 1), "n"], [number(r.rates.prefill), "n"],
    [number(r.outcomes), "n dim"],
  ]);
}

function engineRows(name, engine) {
  const label = `${engine.kind} ${engine.version}`.trim();
  if (!engine.up) {
    return [row(fleetLabels, [
      [name, "title long bad"], [label, "dim plain"], [`down: ${engine.error}`, "long why bad"],
    ])];
  }
  if (!engine.replicas.length) {
    return [row(fleetLabels, [[name, "title long"], [label, "dim plain"], ["no model", "dim plain"]])];
  }
  return engine.replicas.map((r) => replicaRow(name, label, r));
}

function nodeRows(node) {
  const name = node.leaving ? `${node.name} (leaving)` : node.name;
  if (!node.engines.length) {
    return [row(fleetLabels, [[name, "title long"], ["no engine found", "dim plain"]])];
  }
  return node.engines.flatMap((engine) => engineRows(name, engine));
}

function answeredRow(a) {
  return row(answeredLabels, [
    [a.model, "title long"], [a.endpoint, "dim plain"],
    [a.ending, a.ending === "completed" ? "plain" : "plain bad"], [a.node, "long"],
    [number(a.waited, 2), "n"], [number(a.took, 2), "n"], [number(a.tokens), "n"],
    [a.why, "long why dim"], [a.id, "dim plain"],
  ]);
}

function show({ fleet, answered, total }) {
  document.querySelector("#fleet tbody").replaceChildren(...fleet.nodes.flatMap(nodeRows));
  document.querySelector("#answered tbody").replaceChildren(...answered.map(answeredRow));
  document.getElementById("no-nodes").hidden = fleet.nodes.length > 0;
  document.getElementById("fleet").hidden = fleet.nodes.length === 0;
  const nodes = fleet.nodes.length === 1 ? "1 node" : `${fleet.nodes.length} nodes`;
  state.textContent =
    `${nodes}, ${fleet.running} running, ${fleet.waiting} waiting, ${total} ended`;
  state.className = "";
}

const events = new EventSource("/herd/v1/events");
events.onmessage = (event) => show(JSON.parse(event.data));
events.onerror = () => {
  state.textContent = "the router does not answer; trying again";
  state.className = "bad";
};
