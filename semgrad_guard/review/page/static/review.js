// Keyboard shortcuts and a warning when a claim runs out. Everything works without this file.
"use strict";

const OFF = "semgrad-guard-shortcuts-off";
const help = document.getElementById("help");
const toggle = document.getElementById("shortcuts-on");

function remembered() {
  try { return localStorage.getItem(OFF) === "yes"; } catch { return false; }
}

function say(text) {
  document.getElementById("told").textContent = text;
}

function typing(element) {
  return element.closest("input:not([type=checkbox]), textarea, select") !== null;
}

function move(step) {
  const rows = [...document.querySelectorAll("[data-row]")];
  if (rows.length === 0) return false;
  const at = rows.indexOf(document.activeElement);
  rows[Math.min(Math.max(at + step, 0), rows.length - 1)].focus();
  return true;
}

function act(element) {
  const panel = element.closest("details.decision");
  if (panel) {
    panel.open = true;
    const inside = panel.querySelector("textarea, button");
    inside.focus();
    inside.scrollIntoView({ block: "nearest" });
  } else if (element.dataset.do === "focus") {
    element.focus();
  } else {
    element.click();
  }
}

document.addEventListener("keydown", (event) => {
  const target = event.target;
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey) && target.form && target.tagName === "TEXTAREA") {
    event.preventDefault();
    target.form.requestSubmit();
  } else if (event.key === "Escape" && typing(target)) {
    target.blur();
  } else if (!(event.ctrlKey || event.metaKey || event.altKey || typing(target) || help?.open || remembered())) {
    const control = [...document.querySelectorAll("[data-key]")].find((one) => one.dataset.key === event.key);
    if (control) {
      event.preventDefault();
      act(control);
    } else if (event.key === "j" || event.key === "k") {
      if (move(event.key === "j" ? 1 : -1)) event.preventDefault();
    }
  }
});

if (help && toggle) {
  document.querySelector("[data-help]").hidden = false;
  document.querySelector("[data-help]").addEventListener("click", () => help.showModal());
  toggle.checked = !remembered();
  toggle.addEventListener("change", () => {
    try { localStorage.setItem(OFF, toggle.checked ? "no" : "yes"); } catch { /* then it holds for nobody */ }
  });
}

const lease = document.getElementById("lease");
if (lease) {
  const left = new Date(lease.dateTime) - Date.now();
  if (left < 2 ** 31) {
    setTimeout(() => say("Your time for this review has run out; somebody else may take it now."), Math.max(left, 0));
  }
}
document.documentElement.classList.add("scripted");
