"use strict";
// Filter boxes, arrows that follow the node pointed at, folded parts opened for links and printing. All optional.
document.documentElement.classList.add("js");

for (const box of document.querySelectorAll("input.filter")) {
  const rows = box.closest(".filterable").querySelector(".rows");
  box.addEventListener("input", () => {
    const words = box.value.toLowerCase().split(/\s+/).filter(Boolean);
    for (const row of rows.children) {
      const text = row.textContent.toLowerCase();
      row.hidden = !words.every((w) => text.includes(w));
    }
  });
}

const map = document.querySelector("svg.map");
if (map) {
  const arrows = [...map.querySelectorAll(".arrows path")];
  const show = (name) => {
    map.classList.toggle("focused", name !== null);
    for (const a of arrows) a.classList.toggle("on", a.dataset.o === name || a.dataset.h === name);
  };
  for (const node of map.querySelectorAll(".node")) {
    node.addEventListener("pointerenter", () => show(node.dataset.n));
    node.addEventListener("focus", () => show(node.dataset.n));
    node.addEventListener("pointerleave", () => show(null));
    node.addEventListener("blur", () => show(null));
  }
}

const open = () => {
  const target = location.hash.length > 1 && document.getElementById(location.hash.slice(1));
  for (let e = target; e; e = e.parentElement) if (e.tagName === "DETAILS") e.open = true;
  if (target) target.scrollIntoView();
};
addEventListener("hashchange", open);
open();

let folded = [];
addEventListener("beforeprint", () => {
  folded = [...document.querySelectorAll("details:not([open])")];
  for (const d of folded) d.open = true;
});
addEventListener("afterprint", () => {
  for (const d of folded) d.open = false;
});
