package com.example.classifier

import java.io.File

/** Feeds pixels to the classifier, whose runtime is a stub that keeps them; and ranks ties. */
fun main(arguments: Array<String>) {
    val (labels, rgb) = arguments
    Classifier(File("no-model"), File(labels)).use {
        it.logits(File(rgb).readBytes())
        println(it.ranked(floatArrayOf(-0f, 1f, 0f, 1f)))
    }
}
