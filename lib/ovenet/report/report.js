"use strict";
// The gallery: a list of images to choose from, and a viewer that wipes between two layers of one of them.
(() => {
  const page = JSON.parse(document.getElementById("page-data").textContent);
  const element = (id) => document.getElementById(id);

  // Tables that sort: a click on a column's head, again for the other direction.
  for (const table of document.querySelectorAll("table.sortable")) {
    const heads = [...table.tHead.rows[table.tHead.rows.length - 1].cells];
    const body = table.tBodies[0];
    const text = (row, column) => row.cells[column].textContent.trim();
    const number = (value) => (value === "–" ? -Infinity : Number(value.replace("−", "-")));
    heads.forEach((head, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = head.textContent || "name";
      head.replaceChildren(button);
      button.addEventListener("click", () => {
        const descending = head.getAttribute("aria-sort") ? head.getAttribute("aria-sort") === "ascending" : column > 0;
        heads.forEach((other) => other.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", descending ? "descending" : "ascending");
        const order = (a, b) => (column ? number(text(a, column)) - number(text(b, column)) : text(a, 0).localeCompare(text(b, 0)));
        body.append(...[...body.rows].sort((a, b) => (descending ? order(b, a) : order(a, b))));
      });
    });
  }

  if (!element("viewer")) return;

  const IGNORE = 255;
  const SYMBOLS = { initial: "S_i", seed: "S_s", fused: "S_f" };
  const WORDS = { fused: "prediction", initial: "without seeds", seed: "seeds only" };
  const OUTCOMES = page.outcomes;
  const state = { shown: [], image: null, at: null, decoded: null, highlighted: null };

  // ---- layers -------------------------------------------------------------------------------------------------

  const layers = page.is_labelled ? [["photo", "photograph"], ["label", "label"]] : [["photo", "photograph"]];
  page.runs.forEach((run, index) => {
    const prefix = page.runs.length > 1 ? `${run.name}: ` : "";
    const names = page.is_labelled ? run.predictions : Object.keys(WORDS).filter((name) => run.predictions.includes(name));
    for (const name of names) layers.push([`${index}/${name}`, `${prefix}${WORDS[name]} (${SYMBOLS[name]})`]);
    if (page.is_labelled) layers.push([`${index}/errors`, `${prefix}errors`]);
    for (const title of run.fields) layers.push([`${index}/field:${title}`, `${prefix}${title}`]);
    if (run.has_seed) layers.push([`${index}/offset`, `${prefix}offsets`], [`${index}/confidence`, `${prefix}confidence`]);
  });

  if (!page.is_labelled) layers.push(layers.shift()); // without labels the prediction comes first, the photograph last

  function fillSelect(select, options, value) {
    for (const [key, text] of options) select.add(new Option(text, key));
    select.value = value;
  }

  async function pixelsOf(base64) {
    const image = new Image();
    image.src = `data:image/webp;base64,${base64}`;
    await image.decode();
    const canvas = document.createElement("canvas");
    [canvas.width, canvas.height] = [image.width, image.height];
    const context = canvas.getContext("2d", { willReadFrequently: true });
    context.drawImage(image, 0, 0);
    return context.getImageData(0, 0, image.width, image.height);
  }

  const pictureText = (run, index) => element(`picture-${run}-${index}`);
  const readPictures = (run, index) => JSON.parse(pictureText(run, index).textContent);

  // All that is shown of an image, as pixels: the work of a click.
  async function decode(index) {
    const runs = page.runs.map((_, run) => readPictures(run, index));
    const decoded = { size: runs[0].size, photo: await pixelsOf(runs[0].photo), runs: [] };
    decoded.label = runs[0].maps.label ? await pixelsOf(runs[0].maps.label) : null;
    for (const data of runs) {
      const own = { stride: data.stride, maps: {}, best: {}, fields: {}, shares: data.shares };
      for (const name of ["initial", "seed", "fused"]) {
        if (data.maps[name]) own.maps[name] = await pixelsOf(data.maps[name]);
        if (data.best[name]) {
          const { classes, shares } = data.best[name];
          own.best[name] = { classes: await pixelsOf(classes), shares: await pixelsOf(shares) };
        }
      }
      if (data.offset) {
        own.offset = await pixelsOf(data.offset);
        own.confidence = await pixelsOf(data.confidence);
      }
      for (const [title, field] of Object.entries(data.fields || {})) {
        own.fields[title] = { ...field, offset: await pixelsOf(field.offset) };
      }
      decoded.runs.push(own);
    }
    return decoded;
  }

  // ---- colours ------------------------------------------------------------------------------------------------

  const classColour = (id) => (id === IGNORE ? [0, 0, 0] : page[element("colours").value === "safe" ? "safe_palette" : "palette"][id]);

  function offsetAt(map, position, span = 2) {
    const [a, b, low] = map.data.slice(4 * position, 4 * position + 3);
    return [(a << 4) | (low >> 4), (b << 4) | (low & 15)].map((value) => ((value / 4095) * 2 - 1) * span);
  }

  // The wheel is a picture of all offsets up to the longest; longer ones take the colour of their direction.
  function offsetColour([x, y], longest) {
    const scale = Math.min(1, longest / Math.max(Math.hypot(x, y), 1e-9));
    const radius = (wheel.width - 1) / 2;
    const column = Math.round(radius + (x * scale * radius) / longest);
    const row = Math.round(radius + (y * scale * radius) / longest);
    return wheel.data.slice(4 * (row * wheel.width + column), 4 * (row * wheel.width + column) + 3);
  }

  function outcome(label, initial, fused) {
    if (label === IGNORE) return 4;
    if (initial === label) return fused === label ? 0 : 2;
    return fused === label ? 1 : 3;
  }

  // "run/name", or a name alone for what all runs share.
  const splitKey = (key) => (key.includes("/") ? [key.slice(0, key.indexOf("/")), key.slice(key.indexOf("/") + 1)] : [0, key]);

  function layerPixels(key, only = null) {
    const { decoded } = state;
    if (key === "photo") return decoded.photo;
    const [run, name] = splitKey(key);
    const own = decoded.runs[run];
    let source, colour;
    if (name === "errors") {
      source = own.maps.fused;
      const initial = own.maps.initial || source;
      colour = (i) => OUTCOMES[outcome(decoded.label.data[i], initial.data[i], source.data[i])][1];
    } else if (name === "offset") {
      source = own.offset;
      colour = (i) => offsetColour(offsetAt(source, i / 4), page.runs[run].max_offset);
    } else if (name.startsWith("field:")) {
      const field = own.fields[name.slice(6)];
      source = field && field.offset;
      colour = (i) => offsetColour(offsetAt(source, i / 4, field.longest), field.longest);
    } else if (name === "confidence") {
      source = own.confidence;
      colour = (i) => page.cividis[source.data[i]];
    } else {
      source = name === "label" ? decoded.label : own.maps[name];
      colour = (i) => classColour(source.data[i]);
    }
    if (!source || (name === "errors" && !decoded.label)) return null;
    const pixels = new ImageData(source.width, source.height);
    for (let i = 0; i < source.data.length; i += 4) {
      if (only !== null && source.data[i] !== only) continue; // stays transparent
      const [r, g, b] = colour(i);
      pixels.data[i] = r; pixels.data[i + 1] = g; pixels.data[i + 2] = b; pixels.data[i + 3] = 255;
    }
    return pixels;
  }

  // ---- the viewer ---------------------------------------------------------------------------------------------

  function paint(canvas, key, only) {
    const pixels = layerPixels(key, only) || new ImageData(4, 4);
    [canvas.width, canvas.height] = [pixels.width, pixels.height];
    canvas.getContext("2d").putImageData(pixels, 0, 0);
  }

  function draw() {
    if (!state.decoded) return;
    state.highlighted = null;
    paint(element("left-canvas"), element("left").value);
    paintRight();
    const [height, width] = state.decoded.size;
    element("stage").style.aspectRatio = `${width} / ${height}`;
    element("stage").style.maxWidth = `min(60rem, ${(85 * width) / height}vh)`;
    element("arrow").setAttribute("viewBox", `0 0 ${width} ${height}`);
    wipe();
    drawLegend();
    drawShares();
    drawPixel();
  }

  function wipe() {
    const share = element("wipe").value;
    element("right-canvas").style.clipPath = `inset(0 0 0 ${share}%)`;
    element("right-canvas").style.opacity = element("blend").value / 100;
    element("divider").style.left = `${share}%`;
    element("divider").hidden = share === "0";
  }

  // ---- the share of each class --------------------------------------------------------------------------------

  // The map of classes that is shown, for what belongs to one; the prediction if there is none.
  function shownMap() {
    const [run, name] = splitKey(element("right").value);
    return name in WORDS ? [run, name] : [last, "fused"];
  }

  function paintRight() {
    const key = state.highlighted === null ? element("right").value : shownMap().join("/");
    paint(element("right-canvas"), key, state.highlighted);
  }

  function highlight(id) {
    state.highlighted = id;
    paintRight();
  }

  function drawShares() {
    const [run, name] = shownMap();
    const shares = state.decoded.runs[run].shares?.[name] ?? [];
    let pinned = null;
    element("shares").replaceChildren(...shares.map(([id, share]) => {
      const button = document.createElement("button");
      button.type = "button";
      button.setAttribute("aria-pressed", "false");
      const box = document.createElement("i");
      box.style.background = `rgb(${classColour(id).join(",")})`;
      const title = document.createElement("span");
      title.textContent = page.classes[id];
      const value = document.createElement("b");
      value.textContent = share < 0.0005 ? "< 0.1 %" : `${(100 * share).toFixed(1)} %`;
      button.append(box, title, value);
      button.addEventListener("pointerenter", (event) => { if (event.pointerType === "mouse") highlight(id); });
      button.addEventListener("pointerleave", () => highlight(pinned));
      button.addEventListener("click", () => {
        pinned = pinned === id ? null : id;
        for (const other of element("shares").querySelectorAll("button")) other.setAttribute("aria-pressed", String(other === button && pinned === id));
        highlight(pinned);
      });
      const item = document.createElement("li");
      item.append(button);
      return item;
    }));
    element("shares").parentElement.hidden = !shares.length;
  }

  function drawLegend() {
    const legend = element("legend");
    legend.replaceChildren();
    const add = (colour, text) => {
      const item = document.createElement("span");
      const box = document.createElement("i");
      box.style.background = `rgb(${colour.join(",")})`;
      item.append(box, text);
      legend.append(item);
    };
    const names = [element("left").value, element("right").value].map((key) => splitKey(key)[1]);
    const shows = (...keys) => keys.some((key) => names.includes(key));
    if (page.is_labelled && shows("label", "initial", "seed", "fused")) { // the list of shares is a legend, too
      const present = new Set();
      for (const map of [state.decoded.label, ...state.decoded.runs.map((run) => run.maps.fused)]) {
        if (map) for (let i = 0; i < map.data.length; i += 4) present.add(map.data[i]);
      }
      [...present].sort((a, b) => a - b).forEach((id) => add(classColour(id), id === IGNORE ? "no label" : page.classes[id]));
    }
    if (shows("errors")) OUTCOMES.forEach(([text, colour]) => add(colour, text));
    if (shows("confidence")) [0, 64, 128, 191, 255].forEach((v) => add(page.cividis[v], `confidence ${(v / 255).toFixed(2)}`));
    const wheelItem = (longest, title) => {
      const item = document.createElement("span");
      const canvas = document.createElement("canvas");
      [canvas.width, canvas.height] = [wheel.width, wheel.height];
      canvas.getContext("2d").putImageData(wheel, 0, 0);
      canvas.setAttribute("role", "img");
      canvas.setAttribute("aria-label", "colour wheel: the hue is the direction of the offset, the saturation its length");
      const [height, width] = state.decoded.size;
      const [across, down] = [(longest * (width - 1)) / 2, (longest * (height - 1)) / 2].map((n) => Number(n.toPrecision(2)));
      item.append(canvas, `${title}: direction by hue; full colour at ${across} pixels across, ${down} down`);
      legend.append(item);
    };
    if (shows("offset")) wheelItem(page.runs[0].max_offset, "offset");
    for (const key of new Set([element("left").value, element("right").value])) {
      const [run, name] = splitKey(key);
      const field = name.startsWith("field:") && state.decoded.runs[run].fields[name.slice(6)];
      if (field) wheelItem(field.longest, name.slice(6));
    }
  }

  // ---- a pixel and its seed -----------------------------------------------------------------------------------

  const cell = (map, stride, [x, y]) =>
    Math.min(map.height - 1, Math.round(y / stride)) * map.width + Math.min(map.width - 1, Math.round(x / stride));

  function nearest(map, [x, y]) {
    const [height, width] = state.decoded.size;
    const row = Math.min(map.height - 1, Math.floor((y * map.height) / height));
    return row * map.width + Math.min(map.width - 1, Math.floor((x * map.width) / width));
  }

  function seedOf(own, at) {
    const [height, width] = state.decoded.size;
    const offset = offsetAt(own.offset, cell(own.offset, own.stride, at));
    const clamp = (value, end) => Math.min(end, Math.max(0, value));
    return [clamp(at[0] + (offset[0] * (width - 1)) / 2, width - 1), clamp(at[1] + (offset[1] * (height - 1)) / 2, height - 1)];
  }

  // Where another field takes a pixel, and how many pixels that is.
  function fieldOf(own, field, at) {
    const [height, width] = state.decoded.size;
    const offset = offsetAt(field.offset, cell(field.offset, own.stride, at), field.longest);
    return [(offset[0] * (width - 1)) / 2, (offset[1] * (height - 1)) / 2];
  }

  function svg(name, attributes) {
    const node = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
    return node;
  }

  const className = (id) => (id === undefined || id === IGNORE ? "none" : page.classes[id]);

  function bestText(best, stride, at) {
    const position = 4 * cell(best.classes, stride, at);
    const parts = [0, 1, 2].map((i) => [best.classes.data[position + i], best.shares.data[position + i]]);
    return parts.filter(([, share], i) => i === 0 || share > 1).map(([id, share]) => `${className(id)} ${((100 * share) / 255).toFixed(0)} %`).join(", ");
  }

  function drawPixel() {
    const lines = element("arrow-lines");
    lines.replaceChildren();
    if (!state.at) return;
    const { decoded, at } = state;
    const label = decoded.label ? decoded.label.data[4 * nearest(decoded.label, at)] : IGNORE;
    const rows = [];
    decoded.runs.forEach((own, index) => {
      const prefix = decoded.runs.length > 1 ? `${page.runs[index].name}: ` : "";
      if (own.offset) {
        const seed = seedOf(own, at);
        const ends = { x1: at[0] + 0.5, y1: at[1] + 0.5, x2: seed[0] + 0.5, y2: seed[1] + 0.5 };
        lines.append(svg("line", { ...ends, stroke: "#000", "stroke-width": 5 }));
        lines.append(svg("line", { ...ends, stroke: "#fff", "stroke-width": 2.5, "marker-end": "url(#head)", "data-run": index }));
        const seedLabel = decoded.label ? decoded.label.data[4 * nearest(decoded.label, seed)] : IGNORE;
        const where = page.is_labelled ? ` on ${className(seedLabel)}` : "";
        rows.push([`${prefix}seed`, `${seed.map(Math.round).join(", ")}${where}`]);
        const confidence = own.confidence.data[4 * cell(own.confidence, own.stride, at)] / 255;
        rows.push([`${prefix}confidence`, confidence.toFixed(2)]);
      }
      for (const [title, field] of Object.entries(own.fields)) {
        const [dx, dy] = fieldOf(own, field, at);
        const ends = { x1: at[0] + 0.5, y1: at[1] + 0.5, x2: at[0] + dx + 0.5, y2: at[1] + dy + 0.5 };
        lines.append(svg("line", { ...ends, stroke: "#e69f00", "stroke-width": 2, "data-field": title }));
        rows.push([`${prefix}${title}`, `${dx.toFixed(1)} across, ${dy.toFixed(1)} down`]);
      }
      const push = (name, value) => rows.push([prefix + WORDS[name], value, SYMBOLS[name]]);
      if (own.best.initial) push("initial", bestText(own.best.initial, own.stride, at));
      if (own.maps.seed) push("seed", className(own.maps.seed.data[4 * nearest(own.maps.seed, at)]));
      if (own.best.fused) push("fused", bestText(own.best.fused, own.stride, at));
    });
    lines.append(svg("circle", { cx: at[0] + 0.5, cy: at[1] + 0.5, stroke: "#000", "stroke-width": 4 }));
    lines.append(svg("circle", { cx: at[0] + 0.5, cy: at[1] + 0.5, stroke: "#fff", "stroke-width": 2 }));
    sizeMarks();
    const table = document.createElement("table");
    const labelRow = page.is_labelled ? [["label", className(label)]] : [];
    for (const [name, value, symbol] of [["pixel (x, y)", at.join(", ")], ...labelRow, ...rows]) {
      const row = table.insertRow();
      const head = document.createElement("th");
      head.scope = "row";
      head.textContent = name;
      if (symbol) {
        const small = document.createElement("small");
        small.textContent = symbol;
        head.append(" ", small);
      }
      row.append(head);
      const cellElement = row.insertCell();
      cellElement.className = "text";
      cellElement.textContent = value;
    }
    const scroll = document.createElement("div");
    scroll.className = "scroll";
    scroll.append(table);
    element("pixel").replaceChildren(scroll);
  }

  function pick(x, y) {
    if (!state.decoded) return;
    const [height, width] = state.decoded.size;
    state.at = [Math.min(width - 1, Math.max(0, Math.floor(x))), Math.min(height - 1, Math.max(0, Math.floor(y)))];
    drawPixel();
  }

  element("stage").addEventListener("click", (event) => {
    if (!state.decoded) return;
    const box = element("left-canvas").getBoundingClientRect();
    const [height, width] = state.decoded.size;
    pick(((event.clientX - box.left) / box.width) * width, ((event.clientY - box.top) / box.height) * height);
  });

  element("stage").addEventListener("keydown", (event) => {
    const step = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    if (!step || !state.decoded) return;
    event.preventDefault();
    const [height, width] = state.decoded.size;
    const at = state.at || [Math.floor(width / 2), Math.floor(height / 2)];
    const length = event.shiftKey ? 1 : Math.max(1, Math.round(width / 60));
    pick(at[0] + step[0] * length, at[1] + step[1] * length);
  });

  // ---- zoom ---------------------------------------------------------------------------------------------------

  const MAX_ZOOM = 32;
  const view = { zoom: 1, x: 0, y: 0 }; // x and y: the corner of the picture, in widths and heights of the stage

  // Marks keep their size on the screen.
  function sizeMarks() {
    const radius = state.decoded.size[1] / 240 / view.zoom;
    for (const circle of element("arrow").querySelectorAll("circle")) circle.setAttribute("r", radius);
    for (const side of ["markerWidth", "markerHeight"]) element("head").setAttribute(side, 4 * radius);
  }

  function place(zoom, x, y) {
    const inside = (value) => Math.min(0, Math.max(1 - zoom, value));
    Object.assign(view, { zoom, x: inside(x), y: inside(y) });
    const { style } = element("view");
    style.width = style.height = `${100 * zoom}%`;
    style.left = `${100 * view.x}%`;
    style.top = `${100 * view.y}%`;
    element("stage").classList.toggle("zoomed", zoom > 1);
    element("zoom-out").disabled = element("zoom-whole").disabled = zoom === 1;
    element("zoom-in").disabled = zoom === MAX_ZOOM;
    if (state.decoded) sizeMarks();
  }

  // The point of the stage, in its widths and heights, stays where it is.
  function zoomBy(factor, [x, y]) {
    const zoom = Math.min(MAX_ZOOM, Math.max(1, view.zoom * factor));
    const growth = zoom / view.zoom;
    place(zoom, x - (x - view.x) * growth, y - (y - view.y) * growth);
  }

  function crossOnStage() {
    if (!state.at) return [0.5, 0.5];
    const [height, width] = state.decoded.size;
    return [view.x + ((state.at[0] + 0.5) / width) * view.zoom, view.y + ((state.at[1] + 0.5) / height) * view.zoom];
  }

  // Moves the picture until the cross is in sight.
  function follow() {
    const margin = 0.1;
    const [dx, dy] = crossOnStage().map((at) => Math.min(1 - margin, Math.max(margin, at)) - at);
    place(view.zoom, view.x + dx, view.y + dy);
  }

  function zoomFromCross(factor) {
    zoomBy(factor, crossOnStage().map((at) => (at >= 0 && at <= 1 ? at : 0.5)));
  }

  function startZoom() {
    const stage = element("stage");
    const pointers = new Map();
    let isDrag = false;
    const onStage = ([x, y]) => {
      const box = stage.getBoundingClientRect();
      return [(x - box.left) / box.width, (y - box.top) / box.height];
    };
    const distance = (a, b) => Math.hypot(a[0] - b[0], a[1] - b[1]);

    stage.addEventListener("wheel", (event) => { // before the stage is clicked, the wheel scrolls the page
      if (!(event.ctrlKey || document.activeElement === stage) || (view.zoom === 1 && event.deltaY > 0)) return;
      event.preventDefault();
      zoomBy(Math.exp(-Math.max(-100, Math.min(100, event.deltaY)) / 250), onStage([event.clientX, event.clientY]));
    }, { passive: false });

    stage.addEventListener("pointerdown", (event) => {
      if (!pointers.size) isDrag = false;
      pointers.set(event.pointerId, [event.clientX, event.clientY]);
    });
    window.addEventListener("pointermove", (event) => {
      const [before, now] = [pointers.get(event.pointerId), [event.clientX, event.clientY]];
      if (!before) return;
      const other = [...pointers].find(([id]) => id !== event.pointerId)?.[1];
      if (other) {
        const middle = onStage([(now[0] + other[0]) / 2, (now[1] + other[1]) / 2]);
        zoomBy(distance(now, other) / Math.max(1, distance(before, other)), middle);
      } else if (view.zoom > 1 && (isDrag || distance(before, now) > 3)) {
        const [from, to] = [onStage(before), onStage(now)];
        place(view.zoom, view.x + to[0] - from[0], view.y + to[1] - from[1]);
      } else return;
      isDrag = true;
      pointers.set(event.pointerId, now);
    });
    for (const name of ["pointerup", "pointercancel"]) window.addEventListener(name, (event) => pointers.delete(event.pointerId));
    stage.addEventListener("click", (event) => { if (isDrag) event.stopImmediatePropagation(); isDrag = false; }, true);

    stage.addEventListener("keydown", (event) => {
      const factor = { "+": 2, "=": 2, "-": 0.5, 0: 1 / MAX_ZOOM }[event.key];
      if (event.key.startsWith("Arrow")) follow();
      if (!factor || event.ctrlKey || event.metaKey || event.altKey) return;
      event.preventDefault();
      zoomFromCross(factor);
    });
    element("zoom-in").addEventListener("click", () => zoomFromCross(2));
    element("zoom-out").addEventListener("click", () => zoomFromCross(0.5));
    element("zoom-whole").addEventListener("click", () => place(1, 0, 0));
    place(1, 0, 0);
  }

  // ---- the list -----------------------------------------------------------------------------------------------

  const last = page.runs.length - 1; // several runs: the list shows the last one, and its gain over the first
  const conditions = page.conditions ?? []; // such as fog and night
  const fused = (image, run) => image.scores[run]?.fused;

  function iouOf(image, run, name) {
    const scores = image.scores[run]?.[name];
    const id = element("class-filter").value;
    return scores ? (id === "" ? scores.mean_iou : scores.iou[id]) : null;
  }

  function gainOf(image) {
    const [before, after] = page.runs.length > 1
      ? [iouOf(image, 0, "fused"), iouOf(image, last, "fused")]
      : [iouOf(image, 0, "initial"), iouOf(image, 0, "fused")];
    return before == null || after == null ? null : after - before;
  }

  const percent = (value) => (value == null ? "–" : (100 * value).toFixed(1));
  const signed = (value) => (value == null ? "–" : `${value < 0 ? "−" : "+"}${Math.abs(100 * value).toFixed(1)}`);
  const gainName = page.runs.length > 1 ? `gain of ${page.runs[last].name} over ${page.runs[0].name}` : "gain of S_f over S_i";

  const ORDERS = {
    worst: ["lowest IoU of S_f first", (image) => iouOf(image, last, "fused")],
    best: ["highest IoU of S_f first", (image) => -iouOf(image, last, "fused")],
    gain: [`largest ${gainName} first`, (image) => -gainOf(image)],
    loss: [`lowest ${gainName} first`, (image) => gainOf(image)],
    changed: ["most changed by the seeds first", (image) => -(image.changed ?? 0)],
    ...(page.images.some((image) => image.label_quality != null) && {
      label: ["likely label errors first", (image) => image.label_quality],
    }),
    ...(conditions.length > 1 && {
      condition: ["by condition, lowest IoU first", (image) => 2 * conditions.indexOf(image.condition) + (iouOf(image, last, "fused") ?? 1)],
    }),
    list: ["order of the list", (image) => image.index],
  };

  const loader = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      if (!entry.isIntersecting) continue;
      const photo = /"photo":"([^"]*)"/.exec(pictureText(0, entry.target.dataset.index).textContent);
      entry.target.src = `data:image/webp;base64,${photo[1]}`;
      loader.unobserve(entry.target);
    }
  }, { rootMargin: "300px" });

  function list() {
    const id = element("class-filter").value;
    const key = ORDERS[element("order").value][1];
    const condition = element("condition-filter").value;
    state.shown = page.images.filter((image) => (id === "" || (fused(image, last) && id in fused(image, last).iou))
      && (!condition || image.condition === condition));
    state.shown.sort((a, b) => (key(a) ?? Infinity) - (key(b) ?? Infinity) || a.index - b.index);
    const what = (condition ? ` of ${condition}` : "") + (id === "" ? "" : ` with ${page.classes[id]} in the label`);
    element("count").textContent = `${state.shown.length} of ${page.images.length} images${what}`;
    element("cards").replaceChildren(...state.shown.map((image) => {
      const item = document.createElement("li");
      const button = document.createElement("button");
      button.type = "button";
      button.dataset.index = image.index;
      const thumbnail = new Image();
      thumbnail.alt = "";
      thumbnail.dataset.index = image.index;
      loader.observe(thumbnail);
      const name = document.createElement("span");
      name.className = "name";
      name.textContent = image.name;
      const scores = document.createElement("span");
      scores.textContent = `IoU ${percent(iouOf(image, last, "fused"))}, gain ${signed(gainOf(image))}`;
      button.append(thumbnail, name);
      if (page.is_labelled) button.append(scores);
      if (image.condition) button.append(document.createElement("br"), image.condition);
      button.addEventListener("click", () => { open(image); element("viewer-title").focus(); });
      item.append(button);
      return item;
    }));
    element("previous").parentElement.hidden = state.shown.length < 2;
    element("cards").hidden = page.images.length < 2 && !page.is_labelled;
    mark();
  }

  function mark() {
    for (const button of element("cards").querySelectorAll("button")) {
      button.setAttribute("aria-current", String(state.image && button.dataset.index === String(state.image.index)));
    }
  }

  async function open(image) {
    state.image = image;
    delete document.body.dataset.open;
    const decoded = await decode(image.index);
    if (state.image !== image) return; // another one was chosen meanwhile
    state.decoded = decoded;
    state.at = null;
    place(1, 0, 0);
    element("pixel").replaceChildren(hint);
    const score = page.is_labelled ? `: mIoU ${percent(fused(image, last)?.mean_iou)} %` : "";
    element("viewer-title").textContent = image.name + score;
    document.body.dataset.open = image.index; // tells tests, and styles, that it is drawn
    draw();
    mark();
  }

  function move(step) {
    if (!state.shown.length) return;
    const place = state.shown.indexOf(state.image);
    open(state.shown[(place + step + state.shown.length) % state.shown.length]);
  }

  // ---- start --------------------------------------------------------------------------------------------------

  const hint = element("pixel").firstElementChild;
  let wheel;
  const best = `${last}/fused`;
  fillSelect(element("left"), layers, "photo");
  fillSelect(element("right"), layers, best);
  fillSelect(element("class-filter"), [["", "all"], ...page.classes.map((name, id) => [String(id), name])], "");
  fillSelect(element("order"), Object.entries(ORDERS).map(([key, [text]]) => [key, text]), page.is_labelled ? "worst" : "list");
  for (const id of ["left", "right", "colours"]) element(id).addEventListener("change", draw);
  fillSelect(element("condition-filter"), [["", "all"], ...conditions.map((name) => [name, name])], "");
  element("condition-label").hidden = !conditions.length;
  for (const id of ["class-filter", "condition-filter", "order"]) element(id).addEventListener("change", list);
  for (const id of ["wipe", "blend"]) element(id).addEventListener("input", wipe);
  element("previous").addEventListener("click", () => move(-1));
  element("next").addEventListener("click", () => move(1));
  startZoom();
  list();
  window.viewer = { page, state, element, list, open }; // for the scripts of pages with a server behind them
  pixelsOf(page.wheel).then((pixels) => { wheel = pixels; if (state.shown.length) open(state.shown[0]); });
})();
