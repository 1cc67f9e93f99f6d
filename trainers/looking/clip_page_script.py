"""Style and script of the page that leafs through clips; plain JavaScript, so that the page needs nothing else."""

STYLE = """
body { max-width: none; }
#browser { display: grid; grid-template-columns: 17rem 1fr; gap: 1.2rem; }
#list { max-height: 86vh; overflow: auto; border-right: 1px solid #dfe3e8; }
#list button { display: block; width: 100%; text-align: left; border: 0; background: none; padding: .3rem .5rem;
  font: inherit; cursor: pointer; border-radius: 4px; overflow-wrap: anywhere; }
#list button.chosen { background: #2f6fde; color: #fff; }
#filter { width: 14.5rem; margin-bottom: .4rem; font: inherit; padding: .2rem .4rem; }
.controls { display: flex; gap: 1.2rem; align-items: center; flex-wrap: wrap; margin: .4rem 0 .8rem; }
.frames { display: flex; flex-wrap: wrap; gap: .7rem; }
.frame { position: relative; }
.frame .stack { position: relative; line-height: 0; background: #222; }
.frame img { height: var(--size, 220px); display: block; }
.frame img.mask { position: absolute; inset: 0; opacity: var(--opacity, .5); image-rendering: pixelated; }
#facts th { white-space: nowrap; font-weight: 600; }
.frame .caption { font-size: .85rem; color: #5b6470; }
"""

SCRIPT = """
const browser = document.getElementById("browser");
browser.innerHTML = `<div><input id="filter" placeholder="video, data set or clip" aria-label="filter">
  <div id="list" role="listbox"></div></div><div><h2 id="name"></h2>
  <div class="controls">
    <label>masks <input type="range" id="opacity" min="0" max="100" value="50"></label>
    <label>size <input type="range" id="size" min="100" max="600" value="220"></label>
    <label><input type="checkbox" id="given"> frame 0 with the mask it starts from</label>
    <label><input type="checkbox" id="play"> play</label>
    <span class="note">arrow keys: previous and next clip</span>
  </div><div class="frames" id="frames"></div><div id="facts"></div></div>`;
const at = id => document.getElementById(id);
let chosen = 0, timer = null;

function element(tag, text, kind) {
  const made = document.createElement(tag);
  if (text !== undefined) made.textContent = text;
  if (kind) made.className = kind;
  return made;
}
function fillList() {
  const wanted = at("filter").value.toLowerCase();
  at("list").replaceChildren();
  CLIPS.forEach((clip, place) => {
    const text = `step ${clip.step}  clip ${clip.clip}  ${clip.dataset} ${clip.video}`;
    if (!text.toLowerCase().includes(wanted)) return;
    const button = element("button", text, place === chosen ? "chosen" : "");
    button.onclick = () => choose(place);
    at("list").append(button);
  });
}
function frame(clip, place) {
  const box = element("div", undefined, "frame"), stack = element("div", undefined, "stack");
  const image = element("img"), mask = element("img", undefined, "mask");
  image.src = clip.images[place];
  image.alt = `frame ${place}`;
  mask.src = place === 0 && at("given").checked ? clip.given : clip.masks[place];
  mask.alt = "mask";
  stack.append(image, mask);
  const gap = place ? `, gap ${clip.gaps[place - 1]}` : "";
  const note = clip.annotated[place] ? "" : ", not annotated";
  box.append(stack, element("div", `frame ${clip.frames[place]}${gap}${note}`, "caption"));
  return box;
}
function table(rows) {
  const made = element("table");
  for (const [name, value] of rows) {
    if (value === "") continue;
    const row = element("tr");
    row.append(element("th", name), element("td", value));
    made.append(row);
  }
  return made;
}
function show() {
  const clip = CLIPS[chosen];
  at("name").textContent = `${clip.dataset}: ${clip.video}`;
  at("frames").replaceChildren(...clip.images.map((_, place) => frame(clip, place)));
  const facts = [["step", `${clip.step} of the stage, rank ${clip.rank}, clip ${clip.clip}`],
    ["curriculum", Object.entries(clip.curriculum).map(pair => pair.join(" ")).join(", ")],
    ["frames of the video", clip.frames.join(", ")],
    ["gaps", clip.gaps.join(", ") + (clip.gap_rule && ` (${clip.gap_rule})`)],
    ["object ids offered", clip.object_ids.join(", ") || "none"], ["objects in slots", String(clip.num_objects)]];
  at("facts").replaceChildren(table([...facts, ...Object.entries(clip.plan)]));
}
function choose(place) {
  chosen = Math.max(0, Math.min(CLIPS.length - 1, place));
  location.hash = String(chosen);
  fillList();
  show();
}
function play() {
  clearInterval(timer);
  const frames = [...at("frames").children];
  frames.forEach(box => box.style.display = "");
  if (!at("play").checked) return;
  let place = 0;
  timer = setInterval(() => {
    [...at("frames").children].forEach((box, number, all) =>
      box.style.display = number === place % all.length ? "" : "none");
    place += 1;
  }, 400);
}
at("filter").oninput = fillList;
at("opacity").oninput = event => browser.style.setProperty("--opacity", event.target.value / 100);
at("size").oninput = event => browser.style.setProperty("--size", `${event.target.value}px`);
at("given").onchange = show;
at("play").onchange = play;
document.addEventListener("keydown", event => {
  if (event.target.id === "filter") return;
  if (event.key === "ArrowDown" || event.key === "ArrowRight") choose(chosen + 1);
  else if (event.key === "ArrowUp" || event.key === "ArrowLeft") choose(chosen - 1);
  else return;
  event.preventDefault();
});
choose(Number(location.hash.slice(1)) || 0);
"""
