"use strict";
// A label to correct: what is drawn changes bytes of train ids, which the server gets when they are saved.
(() => {
  const page = JSON.parse(document.getElementById("page-data").textContent);
  const element = (id) => document.getElementById(id);
  const IGNORE = 255;
  const MAX_UNDO = 200;
  const MARK = [255, 0, 200];
  const state = { place: -1, size: [0, 0], label: null, prediction: null, sure: null, version: "", undo: [], stroke: null, last: null, saved: true, brush: 0 };
  const name = (id) => (id === IGNORE ? "no label" : page.classes[id]);
  const colour = (id) => (id === IGNORE ? [0, 0, 0] : page.palette[id]);

  function say(text, isProblem = false) {
    element("status").textContent = text;
    element("status").classList.toggle("problem", isProblem);
  }

  async function ask(path, query, options = {}) {
    const answer = await fetch(`${path}?${new URLSearchParams(query)}`, { ...options, headers: { "X-OVeNet": "1" } });
    if (!answer.ok) throw new Error(await answer.text());
    return answer.json();
  }

  async function pictureOf(base64) {
    const image = new Image();
    image.src = `data:image/webp;base64,${base64}`;
    await image.decode();
    return image;
  }

  function pixelsOf(image) {
    const canvas = document.createElement("canvas");
    [canvas.width, canvas.height] = [image.width, image.height];
    const context = canvas.getContext("2d", { willReadFrequently: true });
    context.drawImage(image, 0, 0);
    return context.getImageData(0, 0, image.width, image.height).data;
  }

  // ---- drawing ------------------------------------------------------------------------------------------------

  const isMarked = (i) => state.sure[i] && state.prediction[i] !== state.label[i] && state.label[i] !== IGNORE;

  // Colours of a part of the image, rows and columns up to the last ones given.
  function draw(left = 0, top = 0, right = state.size[1] - 1, bottom = state.size[0] - 1) {
    const [height, width] = state.size;
    [left, top, right, bottom] = [Math.max(0, left), Math.max(0, top), Math.min(width - 1, right), Math.min(height - 1, bottom)];
    if (right < left || bottom < top) return;
    const pixels = new ImageData(right - left + 1, bottom - top + 1);
    const source = { label: state.label, prediction: state.prediction }[element("show").value];
    const alpha = source ? Math.round(element("opacity").value * 2.55) : 0;
    const marks = element("marks").checked;
    let at = 0;
    for (let y = top; y <= bottom; y++) {
      for (let x = left; x <= right; x++, at += 4) {
        const i = y * width + x;
        const isStripe = marks && (x + y) % 4 === 0 && isMarked(i);
        const [r, g, b] = isStripe ? MARK : source ? colour(source[i]) : [0, 0, 0];
        pixels.data[at] = r; pixels.data[at + 1] = g; pixels.data[at + 2] = b;
        pixels.data[at + 3] = isStripe ? 255 : alpha;
      }
    }
    element("label-canvas").getContext("2d").putImageData(pixels, left, top);
  }

  // One pixel of the label, whose old class an undo brings back.
  function put(i, id) {
    if (state.label[i] === id) return;
    if (!state.stroke.has(i)) state.stroke.set(i, state.label[i]);
    state.label[i] = id;
  }

  const tool = () => document.querySelector("input[name=tool]:checked").value;

  function dab(x, y, radius) {
    const [height, width] = state.size;
    const kind = tool();
    const reach = Math.ceil(radius);
    for (let dy = -reach; dy <= reach; dy++) {
      for (let dx = -reach; dx <= reach; dx++) {
        const [column, row] = [x + dx, y + dy];
        if (dx * dx + dy * dy >= radius * radius || column < 0 || row < 0 || column >= width || row >= height) continue;
        const i = row * width + column;
        put(i, kind === "class" ? state.brush : kind === "none" ? IGNORE : state.prediction[i]);
      }
    }
  }

  function line([x0, y0], [x1, y1]) {
    const radius = element("size").value / 2;
    const steps = Math.max(Math.abs(x1 - x0), Math.abs(y1 - y0), 1);
    for (let n = 0; n <= steps; n++) dab(Math.round(x0 + ((x1 - x0) * n) / steps), Math.round(y0 + ((y1 - y0) * n) / steps), radius);
    const reach = Math.ceil(radius);
    draw(Math.min(x0, x1) - reach, Math.min(y0, y1) - reach, Math.max(x0, x1) + reach, Math.max(y0, y1) + reach);
  }

  // The connected pixels of one label that have one other prediction.
  function takeRegion([x, y]) {
    const [height, width] = state.size;
    const first = y * width + x;
    const [label, prediction] = [state.label[first], state.prediction[first]];
    if (label === prediction) return;
    const waiting = [first];
    while (waiting.length) {
      const i = waiting.pop();
      if (state.label[i] !== label || state.prediction[i] !== prediction) continue;
      put(i, prediction);
      const column = i % width;
      if (column > 0) waiting.push(i - 1);
      if (column < width - 1) waiting.push(i + 1);
      if (i >= width) waiting.push(i - width);
      if (i < (height - 1) * width) waiting.push(i + width);
    }
    draw();
  }

  function place(event) {
    const box = element("label-canvas").getBoundingClientRect();
    const [height, width] = state.size;
    const along = (value, start, length, count) => Math.min(count - 1, Math.max(0, Math.floor(((value - start) / length) * count)));
    return [along(event.clientX, box.left, box.width, width), along(event.clientY, box.top, box.height, height)];
  }

  function endStroke() {
    if (!state.stroke) return;
    if (state.stroke.size) {
      state.undo.push(state.stroke);
      if (state.undo.length > MAX_UNDO) state.undo.shift();
      state.saved = false;
      say("not saved yet");
    }
    state.stroke = state.last = null;
  }

  function undo() {
    const stroke = state.undo.pop();
    if (!stroke) return;
    for (const [i, id] of stroke) state.label[i] = id;
    state.saved = false;
    draw();
    say("not saved yet");
  }

  const canvas = element("label-canvas");
  canvas.addEventListener("pointerdown", (event) => {
    if (!state.label || event.button) return;
    event.preventDefault();
    canvas.setPointerCapture(event.pointerId);
    state.stroke = new Map();
    state.last = place(event);
    if (tool() === "region") takeRegion(state.last);
    else line(state.last, state.last);
  });
  canvas.addEventListener("pointermove", (event) => {
    if (!state.label) return;
    const at = place(event);
    if (state.stroke && tool() !== "region") {
      line(state.last, at);
      state.last = at;
    }
    const i = at[1] * state.size[1] + at[0];
    const sure = isMarked(i) ? ", of which the network is sure" : "";
    element("pixel").textContent = `${at.join(", ")}: label ${name(state.label[i])}, prediction ${name(state.prediction[i])}${sure}`;
  });
  for (const end of ["pointerup", "pointercancel"]) canvas.addEventListener(end, endStroke);

  // ---- images -------------------------------------------------------------------------------------------------

  async function open(index) {
    state.place = index;
    state.label = null;
    delete document.body.dataset.open;
    say(`${page.images[index].name} …`);
    try {
      const data = await ask("/image", { place: index });
      const [photo, maps] = await Promise.all([pictureOf(data.photo), pictureOf(data.maps)]);
      if (state.place !== index) return; // another one was chosen meanwhile
      const pixels = pixelsOf(maps);
      const [height, width] = (state.size = data.size);
      const channel = (c) => Uint8Array.from({ length: height * width }, (_, i) => pixels[4 * i + c]);
      Object.assign(state, { label: channel(0), prediction: channel(1), sure: channel(2), version: data.version, undo: [], saved: true });
      for (const id of ["photo-canvas", "label-canvas"]) [element(id).width, element(id).height] = [width, height];
      element("photo-canvas").getContext("2d").drawImage(photo, 0, 0);
      zoom();
      draw();
      let marked = 0;
      for (let i = 0; i < state.label.length; i++) if (isMarked(i)) marked++;
      say(`the network is sure of another class in ${((100 * marked) / state.label.length).toFixed(1)} % of the pixels`);
      document.body.dataset.open = index; // tells tests that it is drawn
    } catch (error) {
      say(error.message, true);
    }
  }

  function zoom() {
    const [height, width] = state.size;
    const factor = Number(element("zoom").value);
    element("canvases").style.width = factor === 1 ? `min(100%, ${(75 * width) / height}vh)` : `${100 * factor}%`;
  }

  function move(index) {
    const next = (index + page.images.length) % page.images.length;
    if (!state.saved && !window.confirm("This image is not saved. Leave it?")) {
      element("image").value = state.place;
      return;
    }
    element("image").value = next;
    open(next);
  }

  async function save() {
    if (!state.label) return;
    const index = state.place;
    const sent = state.label.slice();
    say("saving …");
    try {
      const answer = await ask("/save", { place: index, version: state.version }, { method: "POST", body: sent });
      const parts = answer.changed.map(([old, now, number]) => `${old} → ${now} ${number}`);
      if (parts.length) page.images[index].corrected = true;
      fillImages();
      if (state.place !== index) return;
      state.version = answer.version;
      state.saved = sent.every((id, i) => id === state.label[i]);
      say(parts.length ? `saved; pixels: ${parts.join(", ")}` : "nothing to save");
    } catch (error) {
      say(`not saved: ${error.message}`, true);
    }
  }

  // ---- controls -----------------------------------------------------------------------------------------------

  function fillImages() {
    const text = ({ name: file, score, corrected }, i) => `${i + 1}. ${file}, quality ${(100 * score).toFixed(1)}${corrected ? ", corrected" : ""}`;
    element("image").replaceChildren(...page.images.map((image, i) => new Option(text(image, i), i)));
    element("image").value = state.place;
  }

  function choose(id) {
    state.brush = id;
    document.querySelector("input[name=tool][value=class]").checked = true;
    for (const button of element("classes").children) button.setAttribute("aria-checked", String(Number(button.dataset.id) === id));
  }

  page.classes.forEach((text, id) => {
    const button = document.createElement("button");
    button.type = "button";
    button.setAttribute("role", "radio");
    button.dataset.id = id;
    const box = document.createElement("i");
    box.style.background = `rgb(${colour(id).join(",")})`;
    button.append(box, text);
    if (id < 9) {
      const key = document.createElement("kbd");
      key.textContent = id + 1;
      button.append(key);
    }
    button.addEventListener("click", () => choose(id));
    element("classes").append(button);
  });

  function resize(step) {
    const size = element("size");
    size.value = Number(size.value) + step;
    element("size-text").textContent = size.value;
  }

  const setTool = (value) => {
    const radio = document.querySelector(`input[name=tool][value=${value}]`);
    if (radio) radio.checked = true;
  };

  const KEYS = {
    b: () => setTool("class"), e: () => setTool("none"), t: () => setTool("prediction"), r: () => setTool("region"),
    "[": () => resize(-2), "]": () => resize(2), z: undo, s: save, n: () => move(state.place + 1), p: () => move(state.place - 1),
    m: () => { element("marks").checked = !element("marks").checked; draw(); },
    l: () => { element("show").selectedIndex = (element("show").selectedIndex + 1) % 3; draw(); },
  };
  document.addEventListener("keydown", (event) => {
    const isWithControl = event.ctrlKey || event.metaKey;
    if (event.altKey || event.target.tagName === "SELECT" || (isWithControl && !["z", "s"].includes(event.key)) || state.stroke) return;
    const action = KEYS[event.key] || (/^[1-9]$/.test(event.key) && event.key <= page.classes.length && (() => choose(event.key - 1)));
    if (!action) return;
    event.preventDefault();
    action();
  });

  element("undo").addEventListener("click", undo);
  element("save").addEventListener("click", save);
  element("next").addEventListener("click", () => move(state.place + 1));
  element("previous").addEventListener("click", () => move(state.place - 1));
  element("image").addEventListener("change", (event) => move(Number(event.target.value)));
  element("zoom").addEventListener("change", zoom);
  element("size").addEventListener("input", () => resize(0));
  for (const id of ["show", "opacity", "marks"]) element(id).addEventListener("input", () => { if (state.label) draw(); });
  window.addEventListener("beforeunload", (event) => { if (!state.saved) event.preventDefault(); });

  choose(0);
  state.place = 0;
  fillImages();
  open(0);
})();
