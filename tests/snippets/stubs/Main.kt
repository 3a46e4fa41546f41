package com.example.classifier

import java.io.File

/** Feeds the pixels of a file to the classifier, whose runtime is a stub that keeps its input. */
fun main(arguments: Array<String>) {
    val (labels, rgb) = arguments
    Classifier(File("no-model"), File(labels)).use { it.logits(File(rgb).readBytes()) }
}
