// Keeps the newest text in sight, until the reader scrolls up: then the page stays where it is.

const NEAR_PX = 4; // scroll positions are fractions on zoomed pages

const page = document.scrollingElement;
const toEnd = document.getElementById("to-end");
let isFollowing = true;
let lastTop = 0;

function isAtEnd() {
  return page.scrollHeight - page.clientHeight - page.scrollTop <= NEAR_PX;
}

/** Go to the end, if the reader has not scrolled away from it. */
export function follow() {
  if (isFollowing) page.scrollTop = page.scrollHeight;
  toEnd.hidden = isFollowing || isAtEnd();
}

/** Go to the end and stay there. */
export function goToEnd() {
  isFollowing = true;
  follow();
}

addEventListener(
  "scroll",
  () => {
    if (isAtEnd()) isFollowing = true;
    else if (page.scrollTop < lastTop - 1) isFollowing = false;
    lastTop = page.scrollTop;
    toEnd.hidden = isFollowing || isAtEnd();
  },
  { passive: true },
);

addEventListener("resize", follow); // the keyboard of a phone came or went
toEnd.addEventListener("click", () => {
  goToEnd();
  document.getElementById("prompt").focus();
});
