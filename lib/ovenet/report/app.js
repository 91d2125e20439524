"use strict";
// A page with a server behind it: sends photographs and videos to be predicted, and saves what comes back.
(() => {
  const { page, state, element, list, open } = window.viewer;
  const uploads = []; // by the index of the image: its file, and what predicted it
  let queue = Promise.resolve();

  // ---- the server ---------------------------------------------------------------------------------------------

  const choice = () => ({ model: element("model").value, runtime: element("runtime").value });

  async function ask(path, options = {}) {
    let answer;
    try {
      answer = await fetch(path, options);
    } catch {
      throw new Error("The app does not answer. Does it still run in its terminal?");
    }
    if (!answer.ok) throw new Error(await answer.text());
    return answer;
  }

  const send = (path, file, query) =>
    ask(`${path}?${new URLSearchParams(query)}`, { method: "POST", body: file, headers: { "X-OVeNet": "1" } });

  const isVideo = (file) => file.type.startsWith("video/") || /\.(mp4|avi|mov|mkv|webm|m4v|mpe?g)$/i.test(file.name);

  // What the server would refuse after the whole upload.
  function check(file) {
    const what = isVideo(file) ? "video" : "photo";
    if (!file.size) throw new Error(`The ${what} is empty, or a folder.`);
    if (file.size <= page.app.max_mb * 1e6) return;
    const size = (file.size / 1e6).toFixed(1);
    throw new Error(`The ${what} is larger than ${page.app.max_mb} MB: it has ${size}. Save it smaller, or start the app with a larger --max-mb.`);
  }

  async function showPhoto(file) {
    const query = choice();
    const text = await (await send("/predict", file, query)).text();
    const index = page.images.length;
    const node = document.createElement("script");
    node.type = "application/json";
    node.id = `picture-0-${index}`;
    node.textContent = text;
    document.body.append(node);
    uploads[index] = { file, query };
    page.images.push({ index, name: file.name, changed: null, scores: [{}] });
    element("viewer").hidden = false;
    list();
    await open(page.images[index]);
    element("stage").scrollIntoView({ block: "nearest" });
  }

  async function showFilm(file) {
    const film = element("film");
    const url = URL.createObjectURL(await (await send("/film", file, choice())).blob());
    URL.revokeObjectURL(film.src);
    film.src = url;
    film.hidden = false;
  }

  // ---- what is said meanwhile ---------------------------------------------------------------------------------

  function say(text, isProblem = false) {
    const item = document.createElement("li");
    item.textContent = text;
    item.classList.toggle("problem", isProblem);
    element("status").append(item);
  }

  // Runs the work with a sign of activity; false if it failed, which is said.
  async function during(title, name, work) {
    const start = performance.now();
    const seconds = () => (performance.now() - start) / 1000;
    const show = () => { element("elapsed").textContent = `${title} … ${Math.floor(seconds())} s`; };
    show();
    element("activity").hidden = false;
    const timer = setInterval(show, 500);
    try {
      await work();
      return seconds();
    } catch (error) {
      say(`${name}: ${error.message}`, true);
      return null;
    } finally {
      clearInterval(timer);
      element("activity").hidden = true;
    }
  }

  async function takeAll(files) {
    element("status").replaceChildren();
    for (const [place, file] of files.entries()) {
      const number = files.length > 1 ? `${place + 1} of ${files.length}: ` : "";
      const took = await during(`${number}predicting ${file.name}`, file.name, async () => {
        check(file);
        await (isVideo(file) ? showFilm(file) : showPhoto(file));
      });
      if (took !== null) say(`${file.name}: done in ${took.toFixed(1)} s.`);
    }
  }

  // One after the other: what is dropped meanwhile waits.
  function take(files) {
    const all = [...files];
    queue = queue.then(() => takeAll(all));
  }

  // ---- downloads ----------------------------------------------------------------------------------------------

  function save(form) {
    const { file, query } = uploads[state.image.index];
    const name = file.name.replace(/\.[^.]*$/, "") + { mask: "_mask.png", overlay: "_overlay.png", geojson: ".geojson" }[form];
    return during(`writing ${name}`, name, async () => {
      const link = document.createElement("a");
      link.href = URL.createObjectURL(await (await send("/save", file, { ...query, form })).blob());
      link.download = name;
      link.click();
      setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
    });
  }

  // ---- start --------------------------------------------------------------------------------------------------

  element("files").addEventListener("change", (event) => { take(event.target.files); event.target.value = ""; });
  element("example").addEventListener("click", () => {
    queue = queue.then(() => during("drawing", "the example", async () => {
      const drawn = await (await ask("/example")).blob();
      take([new File([drawn], "drawn street.png", { type: drawn.type })]);
    }));
  });
  for (const button of document.querySelectorAll("button[data-form]")) {
    button.addEventListener("click", () => { queue = queue.then(() => save(button.dataset.form)); });
  }
  element("model").addEventListener("change", () => { location.search = new URLSearchParams({ model: element("model").value }); });
  element("drop").addEventListener("submit", (event) => event.preventDefault());
  for (const name of ["dragover", "dragleave", "drop"]) { // on the whole page: a file that misses would replace it
    document.addEventListener(name, (event) => {
      event.preventDefault();
      document.querySelector(".drop").classList.toggle("over", name === "dragover");
      if (name === "drop" && event.dataTransfer.files.length) take(event.dataTransfer.files);
    });
  }
})();
