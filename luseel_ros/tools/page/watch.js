"use strict";
// Shows what the node hears. Angles: degrees counter-clockwise seen from above, 0 front (up),
// 90 left. All text that comes from outside goes through textContent, never through HTML.

const COLOURS = ["#4cc9f0", "#f9a03f", "#b388ff", "#7ae582", "#ff6b8b", "#ffe066", "#3ddbd9",
                 "#c0ca33"];
const INNER = 62;        // radius of the ring where the likelihood is 0 ...
const HEIGHT = 44;       // ... and how much further out it is where it is 1
const HISTORY = 60;      // seconds
const SVG = "http://www.w3.org/2000/svg";
const NAMES = ["front", "front left", "left", "back left", "back", "back right", "right",
               "front right"];

const $ = (id) => document.getElementById(id);
const colours = new Map();   // query id -> colour
let asked = [];              // queries as the node lists them
let events = [];             // of the newest hop
let past = [];               // {time, id, azimuth, confidence, active}
let socket = null;
let retry = 500;             // ms

function element(parent, name, attributes = {}, text = null) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== null) made.textContent = text;
  parent.append(made);
  return made;
}

function html(parent, name, kind = "", text = null) {
  const made = document.createElement(name);
  if (kind) made.className = kind;
  if (text !== null) made.textContent = text;
  parent.append(made);
  return made;
}

function at(azimuth, radius) {
  const angle = azimuth * Math.PI / 180;
  return [-radius * Math.sin(angle), -radius * Math.cos(angle)];
}

function colour(id) {
  if (!colours.has(id)) {
    const used = new Set(colours.values());
    colours.set(id, COLOURS.find((c) => !used.has(c)) || COLOURS[colours.size % COLOURS.length]);
  }
  return colours.get(id);
}

function compassName(azimuth) {
  return NAMES[Math.round(azimuth / 45) % 8];
}

function drawGrid() {
  const grid = $("grid");
  for (const radius of [INNER, INNER + HEIGHT]) {
    element(grid, "circle", {r: radius, cx: 0, cy: 0});
  }
  for (let degrees = 0; degrees < 360; degrees += 45) {
    const [x1, y1] = at(degrees, 8), [x2, y2] = at(degrees, INNER + HEIGHT);
    element(grid, "line", {x1, y1, x2, y2});
  }
  for (const [degrees, name] of [[0, "front"], [90, "left"], [180, "back"], [270, "right"]]) {
    const [x, y] = at(degrees, 118);
    element(grid, "text", {x, y}, name);
  }
}

function drawCompass() {
  const rings = $("rings"), arrows = $("arrows");
  rings.replaceChildren();
  arrows.replaceChildren();
  for (const event of events) {
    const shade = colour(event.id);
    const points = event.likelihood.map((value, degrees) =>
      at(degrees, INNER + HEIGHT * value / 255).map((x) => x.toFixed(2)).join(","));
    element(rings, "polygon", {
      class: "ring", points: points.join(" "), fill: shade, stroke: shade,
      "stroke-opacity": event.active ? 1 : 0.35, "data-id": event.id});
  }
  // only what rises above the inner circle is filled
  element(rings, "circle", {class: "inside", r: INNER - 0.6, cx: 0, cy: 0});
  for (const event of events) {
    if (event.azimuth === null) continue;
    const shade = colour(event.id);
    const group = element(arrows, "g", {
      class: "arrow", "data-id": event.id, "data-azimuth": event.azimuth,
      opacity: 0.15 + 0.85 * event.confidence});
    const [x2, y2] = at(event.azimuth, INNER - 4);
    element(group, "line", {x1: 0, y1: 0, x2, y2, stroke: shade});
    const head = [at(event.azimuth, INNER + 5), at(event.azimuth + 9, INNER - 7),
                  at(event.azimuth - 9, INNER - 7)];
    element(group, "polygon", {points: head.map((p) => p.join(",")).join(" "), fill: shade});
  }
}

function drawQueries() {
  const heard = new Map(events.map((event) => [event.id, event]));
  const rows = asked.length ? asked : events;
  const list = $("queries");
  list.replaceChildren();
  for (const query of rows) {
    const event = heard.get(query.id);
    const row = html(list, "li", event && event.active ? "active" : "");
    row.dataset.id = query.id;
    html(row, "span", "dot").style.background = colour(query.id);
    html(row, "span", "words", query.text);
    html(row, "span", "where", !event ? "" : event.azimuth === null ? "no direction" :
      `${Math.round(event.azimuth) % 360}° ${compassName(event.azimuth)}`);
    const remove = html(row, "button", "", "×");
    remove.type = "button";
    remove.title = "stop listening for this";
    remove.addEventListener("click", () => send({action: "remove", id: query.id}));
    const meter = html(row, "meter");
    meter.max = 1;
    meter.value = event ? event.confidence : 0;
    meter.title = event ? `confidence ${Math.round(100 * event.confidence)}%` : "no result yet";
  }
  $("none").hidden = rows.length > 0;
}

function drawHistory() {
  const canvas = $("history"), ratio = window.devicePixelRatio || 1;
  const width = canvas.clientWidth, height = canvas.clientHeight;
  if (canvas.width !== Math.round(width * ratio) || canvas.height !== Math.round(height * ratio)) {
    canvas.width = Math.round(width * ratio);
    canvas.height = Math.round(height * ratio);
  }
  const pen = canvas.getContext("2d"), left = 44, top = 8, bottom = 20;
  pen.setTransform(ratio, 0, 0, ratio, 0, 0);
  pen.clearRect(0, 0, width, height);
  pen.font = "11px sans-serif";
  pen.textBaseline = "middle";
  // top to bottom: back, left, front, right, back; so left is above right
  const y = (turn) => top + (height - top - bottom) * (180 - turn) / 360;
  for (const [turn, name] of [[180, "back"], [90, "left"], [0, "front"], [-90, "right"],
                              [-180, "back"]]) {
    pen.strokeStyle = "#2a3443";
    pen.beginPath();
    pen.moveTo(left, y(turn));
    pen.lineTo(width, y(turn));
    pen.stroke();
    pen.fillStyle = "#93a1b5";
    pen.textAlign = "right";
    pen.fillText(name, left - 6, y(turn));
  }
  const now = past.length ? past[past.length - 1].time : 0;
  const x = (time) => left + (width - left - 6) * (1 - (now - time) / HISTORY);
  pen.textAlign = "center";
  for (let back = 10; back < HISTORY; back += 10) {
    pen.fillText(`−${back} s`, x(now - back), height - 8);
  }
  for (const point of past) {
    if (point.azimuth === null) continue;
    const turn = point.azimuth > 180 ? point.azimuth - 360 : point.azimuth;
    pen.globalAlpha = 0.1 + 0.9 * point.confidence;
    pen.fillStyle = colour(point.id);
    pen.beginPath();
    pen.arc(x(point.time), y(turn), point.active ? 3.5 : 2, 0, 2 * Math.PI);
    pen.fill();
  }
  pen.globalAlpha = 1;
  canvas.dataset.points = past.length;
}

function takeEvents(message) {
  events = message.events;
  const newest = past.length ? past[past.length - 1].time : -Infinity;
  if (message.stamp < newest - 0.001) past = [];  // the clock went back: another recording
  for (const event of events) {
    past.push({time: message.stamp, id: event.id, azimuth: event.azimuth,
               confidence: event.confidence, active: event.active});
  }
  past = past.filter((point) => point.time > message.stamp - HISTORY);
  const known = new Set([...asked, ...events, ...past].map((item) => item.id));
  for (const id of colours.keys()) if (!known.has(id)) colours.delete(id);
  // with simulated or old stamps the age says nothing
  const sensible = message.age !== undefined && message.age >= 0 && message.age < 60;
  $("age").textContent = sensible ? `${message.age.toFixed(2)} s behind` : "";
  drawCompass();
  drawQueries();
  drawHistory();
}

function takeLevel(message) {
  message.db.slice(0, 2).forEach((db, ear) => {
    const name = ear ? "right" : "left";
    $(name).value = Math.max(-60, db);
    $(name + "_db").textContent = db > -119.9 ? `${db.toFixed(0)} dB` : "silent";
  });
}

function takeAnswer(message) {
  $("answer").textContent = message.ok ? message.reason || "done" : `refused: ${message.reason}`;
  $("answer").className = message.ok ? "" : "bad";
}

const TAKE = {
  hello: (message) => { $("node").textContent = message.node; },
  events: takeEvents,
  level: takeLevel,
  queries: (message) => { asked = message.queries; drawQueries(); },
  answer: takeAnswer,
};

function send(message) {
  if (socket && socket.readyState === WebSocket.OPEN) {
    socket.send(JSON.stringify(message));
  } else {
    takeAnswer({ok: false, reason: "not connected"});
  }
}

function connect() {
  socket = new WebSocket(`${location.protocol === "https:" ? "wss" : "ws"}://${location.host}/ws`);
  socket.onopen = () => {
    retry = 500;
    $("state").textContent = "connected";
    $("state").className = "connected";
  };
  socket.onmessage = (message) => {
    const data = JSON.parse(message.data);
    if (Object.hasOwn(TAKE, data.type)) TAKE[data.type](data);
  };
  socket.onclose = () => {
    $("state").textContent = "not connected; trying again";
    $("state").className = "";
    setTimeout(connect, retry);
    retry = Math.min(2 * retry, 8000);
  };
}

$("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  const words = $("words").value.trim();
  if (!words) return;
  send({action: "add", text: words});
  $("words").value = "";
});
$("clear").addEventListener("click", () => send({action: "clear"}));
window.addEventListener("resize", drawHistory);
drawGrid();
drawHistory();
connect();
